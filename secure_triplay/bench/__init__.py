"""Measurements that pair two ways in one run."""
