"""The colour table of the package: colours of curves, maps from values to colours, paper and ink."""

from __future__ import annotations

import functools

import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
"""Curves, in this order: the palette of Okabe and Ito, which readers with any colour vision can tell apart."""
LIGHT_GREY, DARK_GREY = "#BBBBBB", "#555555"

WHITE, INK, MARK, MISSING = (255, 255, 255), (20, 20, 20), (213, 94, 0), (200, 200, 200)
DARK, CHALK, YELLOW, BLACK = (24, 24, 26), (235, 235, 235), (255, 214, 0), (0, 0, 0)
"""Dark paper and what is drawn on it, or over a picture."""

INFERNO = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""Dark violet over red to pale yellow. Lightness rises evenly, so it reads in print and with any colour vision."""
SPECTRUM = ((20, 40, 120), (30, 120, 180), (90, 190, 140), (245, 215, 80), (230, 70, 40))
"""Blue to red, to be mixed with a picture: on a picture, lightness alone would not be read as a value."""


def map_colours(share: np.ndarray, anchors: tuple[tuple[int, int, int], ...] = INFERNO) -> np.ndarray:
    """Values in [0, 1], any shape, clamped -> uint8 (..., 3); MISSING where a value is not finite."""
    known = np.isfinite(share)
    index = (np.where(known, share, 0).clip(0, 1) * 255).round().astype(int)
    return np.where(known[..., None], _table(anchors)[index], np.uint8(MISSING))


@functools.cache
def _table(anchors: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    """256 colours, linear between the anchors, which are evenly spaced."""
    position = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(position, range(len(anchors)), channel) for channel in zip(*anchors, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
