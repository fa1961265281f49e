"""From texts to results: admission, tokenization, scheduling, execution, postprocessing. Knows no transport."""
