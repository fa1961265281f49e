"""Rows, labels, datasets and batches."""
