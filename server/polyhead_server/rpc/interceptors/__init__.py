"""Interceptors that wrap every RPC: telemetry outermost, then authentication, then error mapping."""
