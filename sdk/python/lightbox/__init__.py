"""Lightbox in Python: `export` writes a network as a `.pt2` file that Lightbox runs without Python."""

from .export import export

__all__ = ["export"]
