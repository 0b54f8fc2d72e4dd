"""Flower around the round: the app bundle and the local SuperLink; no key and no data."""
