"""What a file contains, for `hnerv info`: its parts and chunks in bytes and bits per pixel."""

from __future__ import annotations

from hnerv.codec.file import BitstreamFile, PartSize, summed_by_part
from hnerv.metrics import bits_per_pixel


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
    rows = [f"{'part':24}{'parameters':>12}{'bits/param':>11}{'bytes':>13}{'bpp':>10}"]
    parts = summed_by_part(all_parts(file))
    for name, parameters, size in (*parts, ("file", sum(part.parameters for part in parts), file.size)):
        counted, bits = (f"{parameters:,}", f"{8 * size / parameters:.3f}") if parameters else ("-", "-")
        rows.append(f"{name:24}{counted:>12}{bits:>11}{size:>13,}{_rate(file, size, file.frames):>10.5f}")
    return "\n".join(rows)


def chunks_table(file: BitstreamFile) -> str:
    """A line for each chunk: its frames, its bytes."""
    rows = [f"{'segment':24}{'frames':>16}{'bytes':>20}{'bpp':>10}"]
    for number, (first, frames, _, size, *_) in enumerate(file.chunks):
        rate = _rate(file, size, frames)
        rows.append(f"{number:<24}{f'{first}:{first + frames}':>16}{size:>20,}{rate:>10.5f}")
    return "\n".join(rows)


def origin_lines(file: BitstreamFile) -> str:
    """What the file shows and how it was made; values that differ between its chunks as a range."""
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
            f"model    {chunks[0].config.model.embedding}, width {widths}",
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
