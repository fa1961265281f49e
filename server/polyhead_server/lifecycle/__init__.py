"""Life of a server process: start, readiness, reload, drain, stop."""
