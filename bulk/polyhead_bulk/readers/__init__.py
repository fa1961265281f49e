"""Readers of inputs: each divides its input into fragments, of which every one becomes a part of the output."""

from .base import Piece, Reader, Want, failed
from .open import open_reader

__all__ = ["Piece", "Reader", "Want", "failed", "open_reader"]
