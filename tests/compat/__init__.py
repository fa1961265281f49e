"""Compatibility with earlier releases: golden files of what docs/reference/stability.md promises, and tests that hold them."""
