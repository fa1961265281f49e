"""Interoperability: imports checkpoints, exports sentence-transformers folders, uploads bundles to the hub."""
