"""Coverage-guided fuzzing of the readers of untrusted bytes: messages, HTTP bodies, bundles, data files."""
