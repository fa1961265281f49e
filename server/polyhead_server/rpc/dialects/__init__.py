"""Other projects' gRPC protocols on the same port: wire -> shared types -> the same pipeline -> wire."""
