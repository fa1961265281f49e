"""Evaluation: metrics, calibration, similarity."""
