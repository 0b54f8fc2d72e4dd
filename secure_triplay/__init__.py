"""Federated fine-tuning of CLIP under differential privacy and encryption."""

__version__ = "0.2.0"
