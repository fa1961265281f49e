"""Labelled data: reading, validation, duplicates, sampling and batches."""
