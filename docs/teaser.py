"""Draw docs/teaser.jpg, the picture at the top of the README, from a .hnerv file of the demo.

    python docs/teaser.py demo.hnerv targets.safetensors

First row: an unseen frame, its reconstruction from the file, their difference. Second row: a patch of that frame, with
its target embedding as the query; the patch with the nearest predicted embedding; the scores of all patches.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle
from PIL import Image
from safetensors.numpy import load_file

from hnerv.cli import main as hnerv
from hnerv.data.video import load_video
from hnerv.geometry import PatchGrid
from hnerv.metrics import psnr
from hnerv.presets import PRESETS

FRAME, PATCH = 59, 1
"""An unseen frame (data split 9_9_10) and the patch with the rabbit's head."""
GAIN = 10
"""Factor of the shown difference."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help=".hnerv file of the demo")
    parser.add_argument("targets", type=Path, help="the targets of its training: embeddings (N, P, D)")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("teaser.jpg"))
    args = parser.parse_args()

    video = load_video("bunny", crop=PRESETS["demo"]["crop"], resize=PRESETS["demo"]["resize"])
    source = video.frames.numpy().transpose(0, 2, 3, 1)
    decoded, predicted = decoded_and_embedded(args.file)
    query = load_file(args.targets)["embeddings"][FRAME, PATCH]
    scores = predicted @ (query / np.linalg.norm(query))
    draw(source, decoded, scores, args.output)


def decoded_and_embedded(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The decoded FRAME (H, W, 3), uint8, and the predicted embeddings (N, P, D), written by `hnerv`."""
    with tempfile.TemporaryDirectory() as folder:
        hnerv(["decode", str(file), "-o", f"{folder}/frames", "--frames", f"{FRAME}:{FRAME + 1}"])
        hnerv(["embed", str(file), "-o", f"{folder}/embeddings.safetensors"])
        picture = np.asarray(Image.open(next(Path(folder, "frames").glob("*.png"))))
        return picture, load_file(f"{folder}/embeddings.safetensors")["embeddings"]


def draw(source: np.ndarray, decoded: np.ndarray, scores: np.ndarray, output: Path) -> None:
    """Two rows of three panels. `source` is uint8 (N, H, W, 3), `decoded` uint8 (H, W, 3), `scores` (N, P) cosines."""
    plt.rcParams |= {"font.size": 15, "axes.titlesize": 17}
    figure, axes = plt.subplots(2, 3, figsize=(15, 5.9), layout="constrained")
    original = source[FRAME]
    grid = PatchGrid(*original.shape[:2], 2, 4)
    difference = np.abs(original.astype(int) - decoded.astype(int))
    decibel = psnr(torch.tensor(np.mean((difference / 255) ** 2)))
    frame, patch = map(int, np.unravel_index(scores.argmax(), scores.shape))

    show(axes[0, 0], original, f"source, frame {FRAME}, unseen in training")
    show(axes[0, 1], decoded, f"decoded from the file, {decibel:.1f} dB")
    show(axes[0, 2], np.minimum(GAIN * difference, 255).astype(np.uint8), f"difference x {GAIN}")
    (top, left), (height, width) = grid.origin_of(PATCH), grid.patch_size
    show(axes[1, 0], original[top : top + height, left : left + width], "query: this patch's true embedding")
    show(axes[1, 1], source[frame], f"first of {scores.size:,}: frame {frame}, patch {patch}")
    top, left = grid.origin_of(patch)
    axes[1, 1].add_patch(Rectangle((left, top), width, height, fill=False, color="#ff2d55", lw=4))
    axes[1, 2].plot(np.delete(scores, patch, axis=1), color="#9db4c8", lw=1.2)
    axes[1, 2].plot(scores[:, patch], color="#ff2d55", lw=2.2)
    axes[1, 2].plot(frame, scores.max(), "o", color="#ff2d55", ms=9)
    axes[1, 2].set(title="cosine of each patch with the query", xlabel="frame", xlim=(0, len(scores) - 1))
    figure.savefig(output, dpi=80, pil_kwargs={"quality": 88})


def show(axis: plt.Axes, picture: np.ndarray, title: str) -> None:
    """An image without ticks."""
    axis.imshow(picture, interpolation="lanczos")
    axis.set(title=title, xticks=[], yticks=[])


if __name__ == "__main__":
    main()
