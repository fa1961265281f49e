"""Compares the answers of two bundles on the same texts: what a roll-out would change, before it happens."""
