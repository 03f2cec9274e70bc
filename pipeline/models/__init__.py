"""Architectures, their weights, and the file that a trained model is."""
