"""Quantized variants of an exported graph."""
