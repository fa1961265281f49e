"""Trains one backbone with many heads, from labelled files to a run directory."""
