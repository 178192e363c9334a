"""Files of one run: bytes and PSNR of each way to code it, against HNeRV's scheme; coder overhead and speed.

python benchmarks/codec.py output/demo --finetune-epochs 30
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hnerv.codec import Bitstream, Options, encode_run, entropy, write_container
from hnerv.codec.allocation import Bits, range_scales
from hnerv.codec.encoding import first_scales
from hnerv.codec.file import coded_weights
from hnerv.codec.finetune import Tuning
from hnerv.codec.quantise import quantise
from hnerv.command import one_line_errors, set_up_torch
from hnerv.config import Config
from hnerv.evaluation import OpenedRun, eval_values, evaluate, open_run
from hnerv.flags import Parser


class Row(NamedTuple):
    """One file: what it is, its bytes, PSNR of the frame in dB, seconds of processor time to make it."""

    name: str
    size: int
    seen: float
    unseen: float
    seconds: float


def main() -> None:
    args = parse()
    with one_line_errors("codec.py", args.debug):
        set_up_torch(args.threads)
        run = open_run(args.run, torch.device("cpu"), data=args.data)
        print(f"float model: {quality(run.model, run)[0]:.3f} / {quality(run.model, run)[1]:.3f} dB")
        baseline = hnerv_scheme(args.run, run)
        print(line(baseline))
        rows = [code(args, name, options) for name, options in variants(args.finetune_epochs).items()]
        for row in rows:
            print(line(row), flush=True)
        print(equal_quality(baseline, rows))
        print(coder_overhead(run))
        print(coder_speed())
        print(process_times(args.run))


def parse() -> argparse.Namespace:
    parser = Parser(prog="codec.py", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", default="", metavar="PATH|CLIP")
    parser.add_argument("--finetune-epochs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--debug", action="store_true")
    return parser.parse_args()


def variants(epochs: int) -> dict[str, Options]:
    """Name -> how the file is made."""
    tuned = {
        f"{bits} bit, {epochs} epochs": Options(bits=Bits(bits, bits), tuning=Tuning(epochs)) for bits in (6, 5, 4)
    }
    return {
        "8 bit": Options(),
        "8 bit symmetric per channel": Options(steps="symmetric", per_channel=True),
        "8 bit symmetric per tensor": Options(steps="symmetric"),
        "8 / 6 bit min-max (HNeRV), our coder": Options(bits=Bits(8, 6), steps="minmax"),
        "6 bit": Options(bits=Bits(6, 6)),
        "6 bit symmetric per channel": Options(bits=Bits(6, 6), steps="symmetric", per_channel=True),
        **tuned,
        f"4 bit, {epochs} epochs, rate weight 0.003": Options(bits=Bits(4, 4), tuning=Tuning(epochs, 2e-4, 3e-3)),
        f"4 bit, {epochs} epochs, 30 % pruned": Options(bits=Bits(4, 4), tuning=Tuning(epochs), prune=0.3),
    }


def quality(model: torch.nn.Module, run: OpenedRun) -> tuple[float, float]:
    """PSNR of the frame, seen and unseen (nan without unseen frames)."""
    values = eval_values(evaluate(model, run.store))
    return values["Eval/Frame/train_psnr_frame"], values.get("Eval/Frame/val_psnr_frame", math.nan)


def code(args: argparse.Namespace, name: str, options: Options) -> Row:
    """A file made of the run, measured from what is read back."""
    run = open_run(args.run, torch.device("cpu"), data=args.data)
    torch.manual_seed(0)
    start = time.process_time()
    data = encode_run(run.model, run.record, options, run.store, {})
    seconds = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.hnerv"
        write_container(path, data)
        return Row(name, len(data), *quality(Bitstream(path).model(), run), seconds)


def hnerv_scheme(path: Path, run: OpenedRun) -> Row:
    """HNeRV's: min-max per tensor, 8 bit weights and 6 bit embeddings, one Huffman code; least and scale in 16 bits.

    The bytes of its Huffman table are not counted, nor a header: it writes no file.
    """
    start = time.process_time()
    weights = coded_weights(run.model)
    scales = range_scales(weights, Bits(8, 6), "minmax", per_channel=False)
    symbols = np.concatenate([quantise(w, scales[name]).flatten().numpy() for name, w in weights.items()])
    size = math.ceil((huffman_bits(np.bincount(symbols)) + 32 * len(weights)) / 8)
    seconds = time.process_time() - start
    coded = code(argparse.Namespace(run=path, data=""), "", Options(bits=Bits(8, 6), steps="minmax"))
    return Row("8 / 6 bit min-max, Huffman (HNeRV)", size, coded.seen, coded.unseen, seconds)


def huffman_bits(counts: np.ndarray) -> int:
    """Bits of symbols that occur `counts` times, under their Huffman code: the sum of its inner nodes."""
    heap = [int(count) for count in counts if count]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        total += pair
        heapq.heappush(heap, pair)
    return total


def line(row: Row) -> str:
    return f"| {row.name} | {row.size:,} | {row.seen:.3f} | {row.unseen:.3f} | {row.seconds:.1f} |"


def equal_quality(baseline: Row, rows: list[Row]) -> str:
    """Our bytes at the baseline's PSNR: between the two tuned files around it, linear in the logarithm of bytes."""
    tuned = sorted((row for row in rows if "epochs" in row.name and "," not in row.name[15:]), key=lambda row: row.seen)
    for low, high in itertools.pairwise(tuned):
        if low.seen <= baseline.seen <= high.seen:
            share = (baseline.seen - low.seen) / (high.seen - low.seen)
            size = low.size ** (1 - share) * high.size**share
            return f"at {baseline.seen:.3f} dB seen: {size:,.0f} bytes, {1 - size / baseline.size:.1%} fewer"
    return f"no two tuned files lie around {baseline.seen:.3f} dB"


def coder_overhead(run: OpenedRun) -> str:
    """All symbols of 6-bit files, tensor by tensor: what is stored over their empirical entropy and their tables."""
    weights = coded_weights(run.model)
    stored = least = 0.0
    for name, scale in first_scales(
        run.model, Options(bits=Bits(6, 6)), Config.from_dict(run.record["config"])
    ).items():
        symbols = quantise(weights[name], scale).flatten().numpy()
        coded = entropy.encode(symbols)
        table = 8 * (len(coded.model.table) + 7)
        stored += 8 * len(coded.words) + 32 + table
        least += entropy.empirical_entropy(symbols) + table
    return f"coded symbols and tables: {stored / least - 1:+.3%} over empirical entropy and tables"


def coder_speed(count: int = 4_000_000) -> str:
    """Million symbols per second, best of five, one thread."""
    symbols = np.random.default_rng(0).normal(0, 6, count).round().astype(np.int32)
    coded = entropy.encode(symbols)
    encode = min(timed(lambda: entropy.encode(symbols)) for _ in range(5))
    decode = min(timed(lambda: entropy.decode(coded, count)) for _ in range(5))
    return f"coder: {count / encode / 1e6:.0f} million symbols/s in, {count / decode / 1e6:.0f} out, tables included"


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def process_times(run: Path) -> str:
    """Wall time of the commands, imports included, best of three."""
    command = [sys.executable, "-c", "from hnerv.cli import main; main()"]
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/a.hnerv"
        words = {
            "encode --no-measure": ["encode", str(run), "-o", file, "--no-measure"],
            "decode to .mp4": ["decode", file, "-o", f"{folder}/a.mp4"],
            "decode to .mkv": ["decode", file, "-o", f"{folder}/a.mkv"],
            "decode to PNG": ["decode", file, "-o", f"{folder}/png"],
        }
        best = {
            name: min(
                timed(lambda w=w: subprocess.run([*command, *w], check=True, capture_output=True)) for _ in range(3)
            )
            for name, w in words.items()
        }
    return "commands: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in best.items())


if __name__ == "__main__":
    main()
