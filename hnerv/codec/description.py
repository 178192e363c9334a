"""Contents of a file for `hnerv info`: its parts and chunks in bytes and bits per pixel."""

from __future__ import annotations

from hnerv.codec.file import BitstreamFile, PartSize, summed_by_part
from hnerv.metrics import bits_per_pixel
from hnerv.tables import Column, format_table


def bpp_of(file: BitstreamFile) -> float:
    """Bits per pixel: 8 x bytes of the file / (frames x height x width)."""
    return _rate(file, file.size, file.frames)


def all_parts(file: BitstreamFile) -> list[PartSize]:
    """Index, headers and sections of all chunks; their sizes sum to that of the file.

    The index of a file with one chunk counts as part of the chunk's header.
    """
    parts = [part for chunk in file.opened_chunks for part in chunk.parts()]
    if len(file.chunks) > 1:
        return [PartSize("index", 0, file.index.size), *parts]
    return [parts[0]._replace(size=file.index.size + parts[0].size), *parts[1:]]


def parts_table(file: BitstreamFile) -> str:
    """A line for each part, summed over all chunks, and for the file."""
    columns = [
        Column("part", "24"),
        Column("parameters", ">12", ","),
        Column("bits/param", ">11", ".3f"),
        Column("bytes", ">13", ","),
        Column("bpp", ">10", ".5f"),
    ]
    rows, parts = [], summed_by_part(all_parts(file))
    for name, parameters, size in (*parts, ("file", sum(part.parameters for part in parts), file.size)):
        bits = 8 * size / parameters if parameters else None
        rows.append((name, parameters or None, bits, size, _rate(file, size, file.frames)))
    return format_table(columns, rows)


def chunks_table(file: BitstreamFile) -> str:
    """A line for each chunk: its frames, its bytes."""
    columns = [
        Column("segment", "24"),
        Column("frames", ">16"),
        Column("bytes", ">20", ","),
        Column("bpp", ">10", ".5f"),
    ]
    rows = [
        (str(number), f"{first}:{first + frames}", size, _rate(file, size, frames))
        for number, (first, frames, _, size, *_) in enumerate(file.chunks)
    ]
    return format_table(columns, rows)


def origin_lines(file: BitstreamFile) -> str:
    """Video, targets and settings of the file; values that differ between its chunks as a range."""
    chunks, grid, several = file.opened_chunks, file.grid, len(file.chunks) > 1
    record, scenes = chunks[0].record, [chunk.scene for chunk in chunks]
    crop = record.video.crop
    notes = ", ".join(f"{key} {_span([chunk.encoder.get(key) for chunk in chunks])}" for key in chunks[0].encoder)
    training, unseen = (sum(len(getattr(scene, split)) for scene in scenes) for split in ("train", "val"))
    widths = ", ".join(map(str, sorted({chunk.record.width for chunk in chunks})))
    return "\n".join(
        (
            f"file     {file.path}: {file.size:,} bytes, {bpp_of(file):.5f} bpp",
            f"video    {record.video.source}, crop {crop.height}x{crop.width} at {crop.top},{crop.left} -> "
            f"{crop.out_height}x{crop.out_width}",
            f"frames   {file.frames} at {file.fps:.6g} frames/s; {training} training, {unseen} unseen"
            + (f"; in {len(chunks)} segments" if several else ""),
            f"patches  {grid.rows}x{grid.cols} of {grid.height // grid.rows}x{grid.width // grid.cols}",
            f"targets  {record.targets_label}",
            f"model    {chunks[0].config.model.embedding}, {chunks[0].config.model.decoder}, width {widths}",
            f"encoding {'per segment: ' if several else ''}{notes}",
        )
    )


def info_dict(file: BitstreamFile) -> dict[str, object]:
    """Everything as a plain dictionary, each section on its own."""
    total = {"file": str(file.path), "bytes": file.size, "bpp": bpp_of(file), "frames": file.frames}
    segments = [
        {
            "first": chunk.entry.first,
            "frames": chunk.entry.frames,
            "bytes": chunk.size,
            "parts": [part._asdict() for part in chunk.parts()],
            "encoder": chunk.encoder,
            "record": chunk.record.to_dict(),
        }
        for chunk in file.opened_chunks
    ]
    if len(segments) > 1:
        return total | {"index_bytes": file.index.size, "segments": segments}
    parts = [part._asdict() for part in all_parts(file)]
    return total | {"parts": parts, "encoder": segments[0]["encoder"], "record": segments[0]["record"]}


def _rate(file: BitstreamFile, size: int, frames: int) -> float:
    return bits_per_pixel(size, frames, file.grid.height, file.grid.width)


def _span(values: list) -> str:
    """The value that all share; else the minimum and maximum of numbers, or all values."""
    texts = dict.fromkeys(map(str, values))
    if len(texts) > 1 and all(isinstance(value, int | float) for value in values):
        return f"{min(values)} to {max(values)}"
    return " or ".join(texts)
