"""Fixtures of the export's tests."""

from tests.support.tiny_model import bundle_dir, export_report, graph_file, model, run_dir, tokenizer, traced_once

__all__ = ["bundle_dir", "export_report", "graph_file", "model", "run_dir", "tokenizer", "traced_once"]
