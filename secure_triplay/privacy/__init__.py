"""Noise, accounting and training under differential privacy."""
