"""Code one run in every supported way and compare bytes and PSNR with HNeRV's scheme; measure the entropy coder.

    python benchmarks/codec.py output/demo --finetune-epochs 30

Prints one Markdown row per file: name, bytes, full-frame PSNR of training and of unseen frames in dB, processor seconds
to encode.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from common import HNERV, child_environment, seconds_of

from hnerv.codec import (
    Options,
    bitstream,
    coded_weights,
    encode_run,
    open_single_chunk,
    records,
    write_bitstream,
)
from hnerv.codec.allocation import Bits
from hnerv.codec.bitstream import LATENTS, read_tensors, section_layout, write_sections
from hnerv.codec.entropy import empirical_entropy
from hnerv.codec.finetune import Tuning
from hnerv.command import one_line_errors, set_up_torch
from hnerv.evaluation import OpenedRun, eval_values, evaluate, open_run
from hnerv.flags import Parser
from hnerv.quantise import Scale, from_logs, quantise


class Row(NamedTuple):
    """One file: PSNR per frame in dB, seconds of processor time to make it."""

    name: str
    size: int
    seen: float
    unseen: float
    seconds: float
    tuned: bool = False

    def __str__(self) -> str:
        return f"| {self.name} | {self.size:,} | {self.seen:.3f} | {self.unseen:.3f} | {self.seconds:.1f} |"


def main() -> None:
    args = parse()
    with one_line_errors("codec.py", args.debug):
        set_up_torch(args.threads)
        run = open_run(args.run, torch.device("cpu"), data=args.data)
        print("float model: {:.3f} / {:.3f} dB".format(*quality(run.model, run)), flush=True)
        rows = []
        for name, options in variants(args.finetune_epochs).items():
            rows.append(code(args, name, options))
            print(rows[-1], flush=True)
        overhead = coder_overhead(run)
        baseline = hnerv_scheme(run)  # leaves the rounded weights in the model
        print(baseline)
        for tuned in (True, False):
            print(at_equal_quality(baseline, rows, tuned))
        print(overhead)
        print(coder_speed())
        print(process_times(args.run))


def parse() -> argparse.Namespace:
    parser = Parser(prog="codec.py", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--data", default="", metavar="PATH|CLIP", help="video, if it has moved since training")
    parser.add_argument("--finetune-epochs", type=int, default=30, help="epochs of the fine-tuned files (30)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch (1)")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    return parser.parse_args()


def variants(epochs: int) -> dict[str, Options]:
    """Name of a file -> its options."""

    def tuned(bits: int, prune: float = 0.0) -> Options:
        return Options(bits=Bits(bits, bits), tuning=Tuning(epochs), prune=prune)

    return {
        "8 bit": Options(),
        "8 bit symmetric per channel": Options(steps="symmetric", per_channel=True),
        "8 bit symmetric per tensor": Options(steps="symmetric"),
        "8 / 6 bit min-max per tensor, our coder": Options(bits=Bits(8, 6), steps="minmax"),
        "6 bit": Options(bits=Bits(6, 6)),
        "6 bit symmetric per channel": Options(bits=Bits(6, 6), steps="symmetric", per_channel=True),
        **{f"{bits} bit, {epochs} epochs": tuned(bits) for bits in (6, 5, 4)},
        f"4 bit, {epochs} epochs, 30 % pruned": tuned(4, prune=0.3),
    }


def quality(model: torch.nn.Module, run: OpenedRun) -> tuple[float, float]:
    """Full-frame PSNR of training and unseen frames, nan if there are none."""
    values = eval_values(evaluate(model, run.store))
    return values["Eval/Frame/train_psnr_frame"], values.get("Eval/Frame/val_psnr_frame", math.nan)


def code(args: argparse.Namespace, name: str, options: Options) -> Row:
    """Write a file of the run; measure the model that is read back from it."""
    run = open_run(args.run, torch.device("cpu"), data=args.data)
    torch.manual_seed(0)
    start = time.process_time()
    data = encode_run(run.model, run.record, options, run.store, {})
    seconds = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.hnerv"
        write_bitstream(path, [data])
        return Row(name, len(data), *quality(open_single_chunk(path).model(), run), seconds, options.tuning.epochs > 0)


class MinMax(NamedTuple):
    """A tensor as HNeRV rounds it: values, symbols, number of stored (minimum, scale) pairs."""

    values: torch.Tensor
    symbols: np.ndarray
    ranges: int


def hnerv_scheme(run: OpenedRun) -> Row:
    """HNeRV's scheme: weights at 8 and embeddings at 6 bits, one Huffman code of all symbols, 16-bit ranges.

    The bytes of the Huffman table and of a header are not counted, since it writes no file.
    """
    start = time.process_time()
    weights = coded_weights(run.model)
    found = {name: hnerv_tensor(w, 6 if LATENTS.fullmatch(name) else 8) for name, w in weights.items()}
    symbols = np.concatenate([tensor.symbols for tensor in found.values()])
    size = math.ceil((huffman_bits(np.bincount(symbols)) + 32 * sum(tensor.ranges for tensor in found.values())) / 8)
    seconds = time.process_time() - start
    run.model.load_state_dict({name: tensor.values for name, tensor in found.items()})
    return Row("8 / 6 bit min-max, Huffman (HNeRV)", size, *quality(run.model, run), seconds)


def hnerv_tensor(weight: torch.Tensor, bits: int) -> MinMax:
    """Round with a range for the tensor, or per index of an axis with fewer ranges than 2 % of the weights.

    The candidate with the smallest mean absolute error is taken.
    """
    candidates = []
    for axis in (None, *range(weight.dim())):
        low = weight.amin() if axis is None else weight.amin(axis, keepdim=True)
        high = weight.amax() if axis is None else weight.amax(axis, keepdim=True)
        if axis is not None and low.numel() >= 0.02 * weight.numel():
            continue
        if axis is not None:
            low, high = low.half().float(), high.half().float()
        step = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
        symbols = ((weight - low) / step).round().clamp(0, 2**bits - 1)
        values = low + step * symbols
        error = (values - weight).abs().mean().item()
        candidates.append((error, MinMax(values, symbols.flatten().int().numpy(), low.numel())))
    return min(candidates, key=lambda candidate: candidate[0])[1]


def huffman_bits(counts: np.ndarray) -> int:
    """Bits of all symbols under their Huffman code: each merge of two nodes adds a bit to all symbols below it."""
    heap = [int(count) for count in counts if count]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        total += pair
        heapq.heappush(heap, pair)
    return total


def at_equal_quality(baseline: Row, rows: list[Row], tuned: bool) -> str:
    """Our bytes at the PSNR of the baseline: between the two files around it, linear in the logarithm of bytes."""
    plain = ("8 bit", "6 bit", "5 bit", "4 bit")
    ours = [row for row in rows if row.tuned == tuned and row.name.split(",")[0] in plain]
    how = "with" if tuned else "without"
    for low, high in itertools.pairwise(sorted(ours, key=lambda row: row.seen)):
        if low.seen <= baseline.seen <= high.seen:
            share = (baseline.seen - low.seen) / (high.seen - low.seen)
            size = low.size ** (1 - share) * high.size**share
            fewer = f"{size:,.0f} bytes, {1 - size / baseline.size:.1%} fewer than HNeRV's scheme"
            return f"at {baseline.seen:.3f} dB on training frames, {how} fine-tuning: {fewer}"
    return f"{how} fine-tuning: no two files bracket the {baseline.seen:.3f} dB of HNeRV's scheme"


def coder_overhead(run: OpenedRun) -> str:
    """Bytes of a 6-bit file's sections, relative to the entropy of each record's symbols under its own histogram."""
    entropies: list[float] = []

    def recording(part: torch.Tensor, scale: Scale | None, *rest) -> bytes:
        entropies.append(empirical_entropy(quantise(part, scale).numpy()))
        return records.put_tensor(part, scale, *rest)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(bitstream, "put_tensor", recording):
        path = Path(folder) / "a.hnerv"
        write_bitstream(path, [encode_run(run.model, run.record, Options(bits=Bits(6, 6)), None, {})])
        stream = open_single_chunk(path)
    stored = 8 * (stream.size - stream.entry.header_bytes)
    return f"sections: {stored / sum(entropies) - 1:+.2%} above the empirical entropy of their symbols, all included"


def coder_speed(shape: tuple[int, ...] = (2048, 768)) -> str:
    """Seconds for a weight with a scale per row and column and for latents, together about 1 MB; best of three."""
    draw = torch.Generator().manual_seed(0)
    rows, cols = (torch.randn(count, 1, generator=draw).exp() for count in shape)
    weights = {
        "embedding.levels.0": torch.randn(64, 2, shape[0] // 64, shape[1] // 12, generator=draw).cumsum(0),
        "rgb_head.conv.weight": torch.randn(shape, generator=draw) * rows * cols.T,
    }
    scales = {
        "embedding.levels.0": from_logs(None, None),
        "rgb_head.conv.weight": from_logs(rows.log2() - 2.5, cols.log2()),
    }
    shapes = {name: weight.shape for name, weight in weights.items()}
    sections = write_sections(weights, scales)
    stored = [(section, sections[section.name]) for section in section_layout(shapes)]
    encode = min(seconds_of(lambda: write_sections(weights, scales)) for _ in range(3))
    decode = min(seconds_of(lambda: read_tensors(stored, shapes)) for _ in range(3))
    size = sum(len(data) for data in sections.values())
    count = sum(weight.numel() for weight in weights.values())
    return f"coder: {count:,} symbols in {size:,} bytes, encoded in {encode:.2f} s, decoded in {decode:.2f} s"


def process_times(run: Path, rounds: int = 3) -> str:
    """Wall time of the commands, imports included, best of three."""
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/a.hnerv"
        commands = {"encode --no-measure": ["encode", str(run), "-o", file, "--no-measure"]}
        for name, output in {"to .mp4": "a.mp4", "to .mkv": "a.mkv", "to PNG": "png"}.items():
            commands[f"decode {name}"] = ["decode", file, "-o", f"{folder}/{output}"]
        best = []
        for name, words in commands.items():
            command = [*HNERV, *words, "--overwrite"]
            times = [seconds_of(lambda c=command: execute(c)) for _ in range(rounds)]
            best.append(f"{name} {min(times):.2f} s")
    return f"commands: {', '.join(best)}"


def execute(command: list[str]) -> None:
    """Raises CalledProcessError if the command fails."""
    subprocess.run(command, env=child_environment(), check=True, capture_output=True)


if __name__ == "__main__":
    main()
