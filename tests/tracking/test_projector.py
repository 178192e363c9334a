"""The files of the projector, as TensorBoard's own plugin reads them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hnerv.tracking import Points, RunLogger
from hnerv.tracking.projector import THUMBNAIL, write_points


@pytest.fixture
def points():
    draw = np.random.default_rng(0)
    columns = {"kind": ["true", "predicted"] * 3, "frame": [*range(6)], "split": ["train"] * 6}
    pictures = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.full((1, 16, 16, 3), 40, np.uint8)
    return Points(draw.standard_normal((6, 5)), columns, pictures)


@pytest.fixture
def plugin():
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin

    def load(folder):
        found = plugin_event_multiplexer.EventMultiplexer()
        found.AddRunsFromDirectory(str(folder))
        found.Reload()
        provider = data_provider.MultiplexerDataProvider(found, "")
        return ProjectorPlugin(TBContext(logdir=str(folder), multiplexer=found, data_provider=provider))

    return load


def test_the_files_hold_the_points(tmp_path, points):
    from tensorboard.plugins.projector.projector_plugin import _read_tensor_tsv_file

    write_points(tmp_path, points)
    assert np.allclose(_read_tensor_tsv_file(str(tmp_path / "projector" / "vectors.tsv")), points.vectors, rtol=1e-3)
    lines = (tmp_path / "projector" / "metadata.tsv").read_text().splitlines()
    assert lines[:3] == ["kind\tframe\tsplit", "true\t0\ttrain", "predicted\t1\ttrain"] and len(lines) == 7
    sprite = np.asarray(Image.open(tmp_path / "projector" / "sprite.png"))
    assert sprite.shape == (3 * THUMBNAIL, 3 * THUMBNAIL, 3)
    for i in range(6):
        row, column = divmod(i, 3)
        assert (sprite[row * THUMBNAIL + 4, column * THUMBNAIL + 4] == 40 * i).all()


def test_the_plugin_finds_them(tmp_path, points, plugin):
    with RunLogger(tmp_path, None, 0) as logger:
        logger.scalars({"Train/PSNR": 1.0}, 1)
        logger.projector(points)
    served = plugin(tmp_path)
    served._update_configs()
    (embedding,) = served._configs["."].embeddings
    assert list(embedding.tensor_shape) == [6, 5] and list(embedding.sprite.single_image_dim) == [THUMBNAIL] * 2


def test_later_points_take_the_place_of_earlier_ones(tmp_path, points):
    write_points(tmp_path, points)
    write_points(tmp_path, points._replace(vectors=points.vectors + 1))
    assert sorted(p.name for p in (tmp_path / "projector").iterdir()) == ["metadata.tsv", "sprite.png", "vectors.tsv"]
    first = (tmp_path / "projector" / "vectors.tsv").read_text().split()[0]
    assert float(first) == pytest.approx(points.vectors[0, 0] + 1, rel=1e-3)


def test_a_disk_that_is_full_warns_once(tmp_path, points, caplog):
    (tmp_path / "projector").touch()
    with RunLogger(tmp_path, None, 0) as logger:
        logger.projector(points)
        logger.projector(points)
        logger.scalars({"Train/PSNR": 1.0}, 1)
    assert len([r for r in caplog.records if r.name == "hnerv"]) == 1


def test_a_run_leaves_them(finished):
    lines = (finished / "tensorboard" / "projector" / "metadata.tsv").read_text().splitlines()
    assert lines[0] == "kind\tframe\tpatch\tsplit" and len(lines) == 1 + 2 * 10 * 8
    assert {line.split("\t")[3] for line in lines[1:]} == {"train", "val"}
    vectors = np.loadtxt(finished / "tensorboard" / "projector" / "vectors.tsv", delimiter="\t")
    assert vectors.shape == (160, 8) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-2)


def test_points_are_not_called_clip(tmp_path, points):
    """They are so only if the targets are."""
    write_points(tmp_path, points)
    config = (tmp_path / "projector_config.pbtxt").read_text()
    assert "patch embeddings" in config and "CLIP" not in config
