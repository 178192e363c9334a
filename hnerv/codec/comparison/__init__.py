"""Comparison with conventional video codecs: rate and distortion of the same frames, measured by the same code."""
