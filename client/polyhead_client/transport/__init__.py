"""Channels, connection pools and credentials."""
