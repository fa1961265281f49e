"""The client's decisions without any I/O: streams, retries, hedging, limits."""
