"""Coverage-guided fuzzing of everything that reads bytes of strangers: messages, HTTP bodies, bundles, data files."""
