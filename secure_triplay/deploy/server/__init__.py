"""The server's half of a real federation: no module here reaches a key or a record of a site."""
