"""Fault scenarios: each injects one kind of fault into real servers and has a control that must fail."""
