"""How the cost of a training step and of decoding grows with frames, resolution and parameters."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from timing import BLOCK, alternating, material_of, repeated, trainer_of

from hnerv.config import Config
from hnerv.errors import UserError


def growth(config: Config, device, folder: str) -> list[dict]:
    """One thing changed at a time: number of frames, resolution, modelsize. What does not divide is left out."""
    scene = material_of(config, device).scene
    size = config.model.modelsize
    axes = {
        "frames": [("frames", f"0:{scene.frames * k // 4}", scene.frames * k // 4) for k in (1, 2, 4)],
        "pixels": [
            ("resize", f"{int(scene.height * k)}x{int(scene.width * k)}", int(scene.height * k) * int(scene.width * k))
            for k in (0.5, 1, 2)
        ],
        "modelsize": [("modelsize", size * k, size * k) for k in (0.5, 1, 2)],
    }
    rows = []
    for axis, values in axes.items():
        for field, value, number in values:
            changes = {field: value} | ({"dec_width": 0} if axis == "modelsize" else {})
            try:
                measured = size_and_speed(config, changes, device, folder)
            except UserError as error:
                print(f"growth     {field} {value} skipped: {error}", flush=True)
                continue
            row = {"axis": axis, "value": value, "number": number, **measured}
            rows.append(row)
            print(
                f"growth     {field} {value}: {row['step_ms']:.1f} ms per step, {row['decode_fps']:.1f} frames/s, "
                f"{row['parameters']:,} parameters",
                flush=True,
            )
    return rows


def size_and_speed(config: Config, changes: dict[str, object], device, folder: str) -> dict[str, float]:
    """A step without blends, decoding, and parameters of the changed configuration. Raises UserError."""
    from hnerv.evaluation.cost import decode_fps
    from hnerv.model import coded_parameters

    trainer = trainer_of(config.replaced({"blend_freq": 0, **changes}), device, folder)
    step = repeated(trainer.step, next(trainer.remaining_batches()))
    seconds = alternating({"step": step}, 3, device)["step"]
    return {
        "step_ms": 1e3 * median(seconds) / BLOCK,
        "decode_fps": decode_fps(trainer.model, seconds=0.5),
        "parameters": sum(coded_parameters(trainer.model).values()),
    }


def plot(rows: list[dict], path: Path) -> None:
    """A column per axis: milliseconds a step above, decoded frames a second below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axes_names = list(dict.fromkeys(row["axis"] for row in rows))
    figure, grid = plt.subplots(2, len(axes_names), figsize=(4 * len(axes_names), 6), squeeze=False)
    labels = {"frames": "frames", "pixels": "pixels per frame", "modelsize": "parameters, millions"}
    for column, axis in zip(grid.T, axes_names, strict=True):
        own = [row for row in rows if row["axis"] == axis]
        quantities = {"step_ms": "ms per step", "decode_fps": "decoded frames/s"}
        for cell, (key, label) in zip(column, quantities.items(), strict=True):
            cell.plot([row["number"] for row in own], [row[key] for row in own], "o-")
            cell.set(xlabel=labels[axis], ylabel=label)
            cell.set_ylim(bottom=0)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
