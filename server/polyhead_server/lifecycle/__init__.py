"""A server's life: start, readiness, reload, drain, stop."""
