"""TLS certificates and API keys, reloaded when their files change."""
