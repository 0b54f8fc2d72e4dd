"""A real federation: Flower's own SuperLink and SuperNodes around the site's worker and the server's rounds."""
