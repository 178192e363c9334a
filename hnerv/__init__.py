"""Patch-based video compression with a dual-head neural representation (RGB and CLIP)."""

__version__ = "0.1.0"
