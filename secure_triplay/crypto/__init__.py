"""The public half of the cryptography: codec, parameters, tags, identities and envelopes."""
