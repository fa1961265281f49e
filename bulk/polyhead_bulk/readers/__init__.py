"""Readers of inputs: each divides its input into fragments, of which every one becomes a part of the output."""

from .base import Piece, Reader, Want, failed, limited
from .open import open_reader

__all__ = ["Piece", "Reader", "Want", "failed", "limited", "open_reader"]
