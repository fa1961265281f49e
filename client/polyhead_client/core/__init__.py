"""Client logic without I/O: stream state, retries, hedging, concurrency and message limits."""
