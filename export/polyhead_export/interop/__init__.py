"""Other projects' formats: importing checkpoints, exporting sentence-transformers folders, the hub."""
