"""No test needs the network, writes to the user's cache, or takes more than one core.

Nor does one see a GPU, so that results are the same on every machine: `HNERV_TEST_CUDA=1 pytest -m cuda` runs those
that need one.

`film`, `targets_file`, `flags`, `train` and `evaluate` are a whole run in miniature: 12 frames of 32x64, 0.2 s.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parent.parent
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
if os.environ.get("HNERV_TEST_CUDA") == "1":
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read once in a process, for the tests of --deterministic
else:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks for devices; processes that tests start inherit it

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings as hypothesis_settings  # noqa: E402
from PIL import Image  # noqa: E402

from hnerv.command import set_up_torch  # noqa: E402

hypothesis_settings.register_profile("hnerv", deadline=None, derandomize=True)  # load and chance are no faults
hypothesis_settings.load_profile("hnerv")

FRAMES, HEIGHT, WIDTH, DIM = 12, 32, 64, 8

SMALL_NAME = "hnerv-small"
SMALL = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


STAND_IN = """#!{python}
import json, os, sys
if "-filters" in sys.argv:
    print("{filters}")
    sys.exit(0)
words = sys.argv
size = words[words.index("-video_size") + 1]
width, height = map(int, size.split("x"))
names = [words[i + 1] for i, word in enumerate(words) if word == "-i"]
data = [open(name, "rb").read() for name in names]
frame = width * height * 3 // 2
scores = []
for k in range(len(data[0]) // frame):
    one, other = (d[k * frame : (k + 1) * frame] for d in data)
    scores.append(100.0 - sum(map(abs, (a - b for a, b in zip(one, other)))) / frame)
{ending}
json.dump({{"frames": [{{"metrics": {{"vmaf": s}}}} for s in scores]}}, open("scores.json", "w"))
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `cuda` are skipped where torch sees no GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and HNERV_TEST_CUDA=1 to see it"))


@pytest.fixture(autouse=True)
def _default_arithmetic(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests marked `cuda` begin with the settings of the commands, and leave none of their own behind."""
    if request.node.get_closest_marker("cuda"):
        set_up_torch(1)
    yield
    if request.node.get_closest_marker("cuda"):
        set_up_torch(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["HNERV_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _event_files_sort_as_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names end in a count per process, not padded: within a second, which only tests do, 10 comes before 9."""
    from tensorboard.summary.writer import event_file_writer

    monkeypatch.setattr(event_file_writer, "_global_uid", type(event_file_writer._global_uid)(0))


def draw_film(folder: Path, shift: int = 0, count: int = FRAMES, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    """`count` PNG images of slowly moving waves."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[: size[0], : size[1]]
    for i in range(count):
        waves = [np.sin((x + i + shift) / 9), np.cos((y - i) / 7), np.sin((x + y + 2 * i) / 11)]
        pixels = (127 + 100 * np.stack(waves, -1)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 images, 32x64."""
    return draw_film(tmp_path_factory.mktemp("film") / "film")


@pytest.fixture(scope="session")
def make_film() -> Callable[..., Path]:
    """make_film(folder, shift=0, count=12, size=(32, 64)): another one."""
    return draw_film


@pytest.fixture(scope="session")
def targets_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings (12, 8, 8) of no encoder."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("targets") / "targets.safetensors"
    draw = torch.Generator().manual_seed(1)
    save_file({"embeddings": torch.randn(FRAMES, 8, DIM, generator=draw)}, path)
    return path


@pytest.fixture(scope="session")
def settings(film: Path, targets_file: Path) -> dict[str, object]:
    """Flags of the run in miniature: 8 training frames in steps of 3, 3 and 2; frames 5 and 11 unseen."""
    return {
        "data": film,
        "clip-targets": targets_file,
        "data-split": "4_5_6",
        "dec-strides": "2 2 2",
        "enc-strides": "2 2 2",
        "rgb-stride": 1,
        "dec-width": 8,
        "embed-dim": 4,
        "enc-width": 4,
        "pe": "1.25_4",
        "pe-stem": 8,
        "clip-site": 1,
        "clip-hidden": 8,
        "lower-width": 4,
        "batch-size": 3,
        "blend-freq": 2,
        "epochs": 5,
        "pixel-loss-warmup-epochs": 2,
        "eval-freq": 2,
        "params-freq": 2,
        "precision": "fp32",
    }


@pytest.fixture(scope="session")
def flags(settings: dict[str, object]) -> Callable[..., list[str]]:
    """flags(epochs=3, clip_targets=None) -> the command line, changed; None leaves a flag out."""

    def build(**changes: object) -> list[str]:
        words = []
        for name, value in (settings | {key.replace("_", "-"): value for key, value in changes.items()}).items():
            words += [f"--{name}", *str(value).split(" ")] if value is not None else []
        return words

    return build


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_main(name: str, words: list) -> int:
    """main() of a script under a command line -> exit status."""
    before = sys.argv
    sys.argv = [f"{name}.py", *map(str, words)]
    try:
        load_script(name).main()
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="session")
def run_script() -> Callable[[str, list], int]:
    """run_script(name, words) runs main() of a script -> exit status."""
    return run_main


@pytest.fixture(scope="session")
def train() -> Callable[..., int]:
    """train(folder, words) runs train_patch_dual.py on output folder / 'run' -> exit status."""
    return lambda output, words, exp_id="run": run_main(
        "train_patch_dual", ["--output", output, "--exp-id", exp_id, *words]
    )


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """evaluate(*words) runs eval.py -> exit status. Speed is measured for 10 ms."""
    from hnerv.evaluation import cost

    fps = cost.decode_fps
    monkeypatch.setattr(cost, "decode_fps", lambda model: fps(model, seconds=0.01))
    return lambda *words: run_main("eval", list(words))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, train, flags) -> Path:
    """The folder of a finished run in miniature, with the tags that must be asked for. Not to be changed."""
    output = tmp_path_factory.mktemp("finished")
    assert train(output, [*flags(), "--histogram-freq", "2", "--graph"]) == 0
    return output / "run"


@pytest.fixture(scope="session")
def rated(tmp_path_factory: pytest.TempPathFactory, train, flags) -> Path:
    """The folder of a run with --rate-weight that has learned something. Not to be changed."""
    output = tmp_path_factory.mktemp("rated")
    assert train(output, flags(rate_weight=5e-3, epochs=30, lr=6e-3, eval_freq=30, params_freq=30)) == 0
    return output / "run"


@pytest.fixture(scope="session")
def divided(tmp_path_factory: pytest.TempPathFactory, train, flags) -> Path:
    """A run in three segments of four frames, the last frame of each unseen. Not to be changed."""
    output = tmp_path_factory.mktemp("divided")
    assert train(output, [*flags(data_split="2_3_4"), "--segment-frames", "4"]) == 0
    return output / "run"


@pytest.fixture(scope="session")
def lines_of() -> Callable[[Path], list[dict]]:
    """lines_of(run) -> the lines of metrics.jsonl."""
    return lambda run: [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def events_of() -> Callable[[Path], dict[str, list]]:
    """events_of(folder) -> {tag: [(step, value), ...]} of the tags in the table.

    A histogram's value is (min, max, num, sum), a picture's its bytes, a text's None.
    """

    def read(folder: Path) -> dict[str, list]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        kinds = ("scalars", "histograms", "tensors", "images", "compressedHistograms", "audio", "graph")
        loaded = EventAccumulator(str(folder), size_guidance=dict.fromkeys(kinds, 0))
        loaded.Reload()
        found = {tag: [(e.step, e.value) for e in loaded.Scalars(tag)] for tag in loaded.Tags()["scalars"]}
        for tag in loaded.Tags()["histograms"]:
            values = [(e.step, e.histogram_value) for e in loaded.Histograms(tag)]
            found[tag] = [(step, (v.min, v.max, v.num, v.sum)) for step, v in values]
        for tag in loaded.Tags()["images"]:
            found[tag] = [(e.step, e.encoded_image_string) for e in loaded.Images(tag)]
        for tag in loaded.Tags()["tensors"]:
            if tag == "custom_scalars__config__":
                continue
            found[tag.removesuffix("/text_summary")] = [(e.step, None) for e in loaded.Tensors(tag)]
        return found

    return read


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """snapshot(folder) -> {relative path: bytes} of every file under it."""
    return lambda folder: {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def setting_of() -> Callable[[str], dict[str, str]]:
    """setting_of("pe") -> the setting of that name that is not the default: an embedding, or the decoder convnext."""
    return lambda name: {"decoder" if name == "convnext" else "embedding": name}


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory, finished: Path, train, flags, setting_of) -> Callable[[str], Path]:
    """run_of(kind) -> the folder of a finished run in miniature. Not to be changed."""
    made = {"grid": finished}

    def build(name: str) -> Path:
        if name not in made:
            output = tmp_path_factory.mktemp(name)
            assert train(output, flags(**setting_of(name), epochs=3)) == 0
            made[name] = output / "run"
        return made[name]

    return build


@pytest.fixture(scope="session")
def long_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 images, 32x64: more knots than a section of a .hnerv file holds."""
    return draw_film(tmp_path_factory.mktemp("long") / "film", count=40)


@pytest.fixture(scope="session")
def long_run(tmp_path_factory: pytest.TempPathFactory, long_film: Path, train, flags) -> Path:
    """The folder of a run on `long_film` that has learned something, without targets. Not to be changed."""
    output = tmp_path_factory.mktemp("long_run")
    changes = {"data": long_film, "clip_targets": None, "clip_weights": "none", "grid_knots": 40, "batch_size": 4}
    assert train(output, flags(**changes, data_split="1_1_1", epochs=30, lr=6e-3, eval_freq=30, params_freq=30)) == 0
    return output / "run"


@pytest.fixture(scope="session")
def hnerv_main() -> Callable[..., int]:
    """hnerv_main(*words) runs the console script in this process -> exit status."""

    def run(*words: object) -> int:
        from hnerv.cli import main

        try:
            main([*map(str, words), "--threads", "1"])
        except SystemExit as end:
            return end.code or 0
        return 0

    return run


@pytest.fixture(scope="session")
def coded(tmp_path_factory: pytest.TempPathFactory, run_of, request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """coded(kind, 'long' or 'rated') -> the .hnerv file of that run under the default options. Not to be changed."""
    made: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in made:
            from hnerv.codec import Options, encode_run, write_bitstream
            from hnerv.runs.models import checkpoint_of, open_checkpoint

            own = {"long": "long_run", "rated": "rated"}
            found = open_checkpoint(checkpoint_of(request.getfixturevalue(own[name]) if name in own else run_of(name)))
            made[name] = tmp_path_factory.mktemp("coded") / f"{name}.hnerv"
            note = {"epoch": found.epoch, "step": found.step}
            write_bitstream(
                made[name], [encode_run(found.model, found.record, Options(), None, note, learned=found.learned)]
            )
        return made[name]

    return build


@pytest.fixture(scope="session")
def packed() -> Callable[[dict, dict[str, bytes]], bytes]:
    """packed({"record": ..., "encoder": ...}, {section: bytes}) -> a file of one chunk with right checksums.

    The header may hold anything that JSON can express.
    """

    def pack(header: dict, sections: dict[str, bytes]) -> bytes:
        from hnerv.codec.format import serialize_index

        table = [[name, len(data), zlib.crc32(data)] for name, data in sections.items()]
        own = {key: value for key, value in header.items() if key != "record"}
        stored = zlib.compress(json.dumps({"record": {}, "sections": table, **own}).encode())
        body = b"".join(sections.values())
        record = header.get("record")
        scene = record.get("scene") if isinstance(record, dict) else None
        frames = scene.get("frames", 1) if isinstance(scene, dict) else 1
        row = [frames, len(stored) + len(body), len(stored), zlib.crc32(stored)]
        return b"".join([*serialize_index({"record": record, "chunks": [row]}, row[1]), stored, body])

    return pack


@pytest.fixture
def no_sync() -> Callable[[], contextlib.AbstractContextManager]:
    """no_sync(): a block in which an operation that waits for the GPU raises RuntimeError."""

    @contextlib.contextmanager
    def forbid() -> Iterator[None]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*prototype feature", UserWarning)  # torch's, of the mode itself
            torch.cuda.set_sync_debug_mode("error")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")

    return forbid


@pytest.fixture(scope="session")
def clip_config() -> dict[str, object]:
    """The architecture of `clip_model`, but for its activation."""
    return SMALL


@pytest.fixture(scope="session")
def clip_model(tmp_path_factory):
    """The small model with QuickGELU, as OpenCLIP itself builds it: real and seeded, it has learned nothing."""
    import open_clip

    folder = tmp_path_factory.mktemp("configs")
    (folder / f"{SMALL_NAME}.json").write_text(json.dumps(SMALL))
    (folder / f"{SMALL_NAME}-quickgelu.json").write_text(json.dumps(SMALL | {"quick_gelu": True}))
    open_clip.add_model_config(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return open_clip.create_model(f"{SMALL_NAME}-quickgelu").eval()


@pytest.fixture(scope="session")
def clip_weights(clip_model, tmp_path_factory) -> Path:
    """Its weights in a file whose name says that they are OpenAI's."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "small.openai.safetensors"
    save_file(clip_model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def clip_run(clip_weights, tmp_path_factory, train, flags) -> Path:
    """The folder of a run with its targets. Not to be changed."""
    output = tmp_path_factory.mktemp("clip_run")
    words = flags(clip_targets=None, clip_weights=clip_weights, clip_model=SMALL_NAME, epochs=4)
    assert train(output, words) == 0
    return output / "run"


@pytest.fixture
def vmaf_stand_in(tmp_path, monkeypatch):
    """vmaf_stand_in(filters, ending) puts an ffmpeg on the PATH: VMAF is 100 less the mean difference of levels."""

    def build(filters: str = " .. libvmaf VV->V ", ending: str = "") -> Path:
        path = tmp_path / "bin" / "ffmpeg"
        path.parent.mkdir()
        path.write_text(STAND_IN.format(python=sys.executable, filters=filters, ending=ending))
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)
        return path

    from hnerv.vmaf import vmaf_obstacle

    vmaf_obstacle.cache_clear()
    yield build
    vmaf_obstacle.cache_clear()


@pytest.fixture(scope="session")
def yuv_clip(tmp_path_factory: pytest.TempPathFactory, film: Path) -> Path:
    """`film` as H.264 in 4:2:0, tagged as BT.709."""
    import av

    path = tmp_path_factory.mktemp("yuv") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12"})
        stream.height, stream.width = HEIGHT, WIDTH
        stream.codec_context.colorspace = 1
        for number in range(FRAMES):
            frame = av.VideoFrame.from_image(Image.open(film / f"{number}.png"))
            frame.pts = number
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=1)))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def yuv_run(tmp_path_factory: pytest.TempPathFactory, yuv_clip: Path, train, flags) -> Path:
    """The folder of a finished run on `yuv_clip`. Not to be changed."""
    output = tmp_path_factory.mktemp("yuv_run")
    assert train(output, flags(data=yuv_clip)) == 0
    return output / "run"
