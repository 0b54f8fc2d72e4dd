"""A real federation: Flower's own SuperLink and SuperNodes around the site's worker and the server's rounds.

`site` is what runs at a hospital (SECRET), `server` what runs at the coordinator's; neither imports the other, which
contracts in `pyproject.toml` hold for whole folders. Beside them is what is no party's: `processes`, which keeps
commands alive, and `bench`.
"""
