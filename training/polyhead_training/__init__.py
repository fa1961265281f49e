"""Training of one backbone with several heads: labelled files in, run directory out."""
