"""Mistakes that somebody really made, to be planted in a copy of this program: are they caught, and by whom?

Each YAML file here is one mistake, as text to replace (`patch`); `audit` plants them one by one.
"""
