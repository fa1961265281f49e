"""Golden files of what docs/reference/stability.md promises, and tests that hold later versions against them."""
