"""Drawing: arrays -> PNG, GIF, WebP and SVG. Only this room draws with Pillow and matplotlib."""
