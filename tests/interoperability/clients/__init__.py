"""One module for each client: the calls that a user of that client makes, run in an environment of its own."""
