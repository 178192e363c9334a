"""What is in a file, for people: part by part, in bytes and bits per pixel."""

from __future__ import annotations

from hnerv.codec.file import Part, summed_by_part
from hnerv.codec.segmented import Film
from hnerv.metrics import bits_per_pixel
from hnerv.tables import Column, format_table


def rate_of(film: Film) -> float:
    """Bits per pixel: 8 x bytes of the whole file / (frames x height x width)."""
    return bits_per_pixel(film.size, film.frames, film.grid.height, film.grid.width)


def all_parts(film: Film) -> list[Part]:
    """Header and sections, those of all segments; their sizes sum to that of the file."""
    index = [Part("index", 0, film.header_bytes)] if film.header_bytes else []
    return index + [part for _, stream in film.streams for part in stream.parts()]


def parts_table(film: Film) -> str:
    """A line per part, over all segments, and their sum, which is the file."""
    columns = [
        Column("part", "24"),
        Column("parameters", ">12", ","),
        Column("bits/param", ">11", ".3f"),
        Column("bytes", ">13", ","),
        Column("bpp", ">10", ".5f"),
    ]
    rows, parts = [], summed_by_part(all_parts(film))
    for name, parameters, size in (*parts, ("file", sum(part.parameters for part in parts), film.size)):
        bpp = bits_per_pixel(size, film.frames, film.grid.height, film.grid.width)
        rows.append((name, parameters or None, 8 * size / parameters if parameters else None, size, bpp))
    return format_table(columns, rows)


def segments_table(film: Film) -> str:
    """A line per segment: where it is, what it takes."""
    columns = [
        Column("segment", "24"),
        Column("frames", ">16"),
        Column("bytes", ">20", ","),
        Column("bpp", ">10", ".5f"),
    ]
    rows = []
    for number, part in enumerate(film.parts):
        bpp = bits_per_pixel(part.size, part.frames, film.grid.height, film.grid.width)
        rows.append((str(number), f"{part.first}:{part.first + part.frames}", part.size, bpp))
    return format_table(columns, rows)


def origin_lines(film: Film) -> str:
    """What it shows and how it was made; what differs between its segments from the least to the most."""
    streams = [stream for _, stream in film.streams]
    record, scenes, grid = streams[0].record, [stream.scene for stream in streams], film.grid
    crop = record.video.crop
    made = ", ".join(f"{key} {_span([s.encoder.get(key) for s in streams])}" for key in streams[0].encoder)
    training, unseen = (sum(len(getattr(scene, split)) for scene in scenes) for split in ("train", "val"))
    widths = ", ".join(map(str, sorted({stream.record.width for stream in streams})))
    return "\n".join(
        (
            f"file     {film.path}: {film.size:,} bytes, {rate_of(film):.5f} bpp",
            f"video    {record.video.source}, crop {crop.height}x{crop.width} at {crop.top},{crop.left} -> "
            f"{crop.out_height}x{crop.out_width}",
            f"frames   {film.frames} at {film.fps:.6g} frames/s; {training} training, {unseen} unseen"
            + (f"; in {len(film.parts)} segments" if film.header_bytes else ""),
            f"patches  {grid.rows}x{grid.cols} of {grid.height // grid.rows}x{grid.width // grid.cols}",
            f"targets  {record.targets_label}",
            f"model    {streams[0].config.model.embedding}, width {widths}",
            f"encoding {'per segment: ' if film.header_bytes else ''}{made}",
        )
    )


def _span(values: list) -> str:
    """One value where all are the same, of numbers the least and the most, else all of them."""
    texts = dict.fromkeys(map(str, values))
    if len(texts) > 1 and all(isinstance(value, int | float) for value in values):
        return f"{min(values)} to {max(values)}"
    return " or ".join(texts)


def as_dict(film: Film) -> dict[str, object]:
    """The same as a plain dictionary, every section on its own."""
    whole = {"file": str(film.path), "bytes": film.size, "bpp": rate_of(film), "frames": film.frames}
    segments = [
        {
            "first": part.first,
            "frames": part.frames,
            "bytes": part.size,
            "parts": [section._asdict() for section in stream.parts()],
            "encoder": stream.encoder,
            "record": stream.record.to_dict(),
        }
        for part, stream in film.streams
    ]
    if film.header_bytes:
        return whole | {"index_bytes": film.header_bytes, "segments": segments}
    return whole | {key: segments[0][key] for key in ("parts", "encoder", "record")}
