"""Several worker processes on one port, and the supervisor that keeps them running."""
