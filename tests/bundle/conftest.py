"""Fixtures of the bundle's tests."""

from tests.support.tiny_model import bundle_dir, export_report, model, run_dir

__all__ = ["bundle_dir", "export_report", "model", "run_dir"]
