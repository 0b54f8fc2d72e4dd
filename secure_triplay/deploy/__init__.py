"""A real federation: Flower's own SuperLink and SuperNodes around the site's worker and the server's rounds.

A site's half: `worker`, `ceremony`, `handover` and `own` (SECRET), `site`. The server's half: `server`, `serverapp`,
`epochstart`, `superlinkmain`; a contract in `pyproject.toml` keeps it from everything in `client`.
"""
