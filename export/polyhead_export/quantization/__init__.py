"""Quantized and half-precision variants of an exported graph."""
