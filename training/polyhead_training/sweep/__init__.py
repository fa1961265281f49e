"""Search for better values of chosen fields of a configuration, by successive halving."""
