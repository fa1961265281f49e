"""Limits on what a file may make a reader hold. Error messages name them."""

from __future__ import annotations

# Characters of a row in a text file, all of its fields and line ends included.
MAX_ROW_CHARACTERS = 32 * 2**20
# Characters of one named value. A long novel has 3 million.
MAX_VALUE_CHARACTERS = 4 * 2**20
# Uncompressed size of a file as a multiple of its size on disk. Compressed prose has a factor of about 3, repetitive
# logs 50; gzip reaches 1,000, and Parquet's dictionaries have no bound.
MAX_EXPANSION = 100
# Files that hold less than this, in bytes or characters, may have any factor.
EXPANSION_ALLOWANCE = 64 * 2**20
