"""TLS certificates and API keys, read again when their files change."""
