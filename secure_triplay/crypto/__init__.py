"""Codec, packing, parameters, identities and envelopes; what encrypts, decrypts and tags is in `client`."""
