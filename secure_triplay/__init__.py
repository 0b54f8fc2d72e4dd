"""Federated fine-tuning of CLIP under differential privacy and encryption."""

__version__ = "0.1.0"
