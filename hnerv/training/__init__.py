"""Fitting a model to its video: optimiser, step, loop, and the run around them."""
