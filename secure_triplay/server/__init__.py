"""CIPHERTEXT ONLY: no key, no adapter, no image ever enters this package."""
