"""What is in a file, for people: part by part, in bytes and bits per pixel."""

from __future__ import annotations

from hnerv.codec.file import Bitstream, summed_by_part
from hnerv.dataset import targets_label
from hnerv.metrics import bits_per_pixel


def rate_of(stream: Bitstream) -> float:
    """Bits per pixel: 8 x bytes of the whole file / (frames x height x width)."""
    scene = stream.scene
    return bits_per_pixel(stream.size, scene.frames, scene.height, scene.width)


def parts_table(stream: Bitstream) -> str:
    """A line per part, and their sum, which is the file."""
    scene = stream.scene
    rows = [f"{'part':24}{'parameters':>12}{'bits each':>11}{'bytes':>13}{'bpp':>10}"]
    parts = summed_by_part(stream.parts())
    for name, parameters, size in (*parts, ("file", sum(part.parameters for part in parts), stream.size)):
        numbers, each = (f"{parameters:,}", f"{8 * size / parameters:.3f}") if parameters else ("-", "-")
        bpp = bits_per_pixel(size, scene.frames, scene.height, scene.width)
        rows.append(f"{name:24}{numbers:>12}{each:>11}{size:>13,}{bpp:>10.5f}")
    return "\n".join(rows)


def origin_lines(stream: Bitstream) -> str:
    """What it shows and how it was made."""
    scene, video, encoder = stream.scene, stream.record["video"], stream.encoder
    top, left, height, width, *size = video["crop"]
    made = ", ".join(f"{key} {value}" for key, value in encoder.items())
    return "\n".join(
        (
            f"file     {stream.path}: {stream.size:,} bytes, {rate_of(stream):.5f} bpp",
            f"video    {video['source']}, crop {height}x{width} at {top},{left} -> {size[0]}x{size[1]}",
            f"frames   {scene.frames}, {scene.fps:.6g} a second; {len(scene.train)} trained, {len(scene.val)} unseen",
            f"patches  {scene.rows}x{scene.cols} of {scene.height // scene.rows}x{scene.width // scene.cols}",
            f"targets  {targets_label(stream.record)}",
            f"model    {stream.config.model.embedding}, width {stream.record['model']['width']}",
            f"encoder  {made}",
        )
    )


def as_dict(stream: Bitstream) -> dict[str, object]:
    """The same as a plain dictionary, every section on its own."""
    return {
        "file": str(stream.path),
        "bytes": stream.size,
        "bpp": rate_of(stream),
        "parts": [part._asdict() for part in stream.parts()],
        "encoder": stream.encoder,
        "record": stream.record,
    }
