"""The gRPC edge of the server: decodes requests, calls the pipeline, encodes responses."""
