"""Backbones, adapters and text heads: frozen weights in, trainable vectors out."""
