"""Channels, the connection pool, credentials, and the two runtimes: threads and asyncio."""
