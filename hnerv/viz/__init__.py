"""Drawing: arrays -> PNG, GIF, WebP and SVG, with one colour table."""
