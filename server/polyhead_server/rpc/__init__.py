"""The gRPC edge: requests in, responses out. Nothing beyond this package knows gRPC."""
