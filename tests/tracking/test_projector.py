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


def test_the_plugin_finds_the_last_points(tmp_path, points):
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin, _read_tensor_tsv_file

    with RunLogger(tmp_path, None, 0) as logger:
        logger.scalars({"Train/PSNR": 1.0}, 1)
        logger.projector(points._replace(vectors=points.vectors + 1))
        logger.projector(points)
    runs = plugin_event_multiplexer.EventMultiplexer()
    runs.AddRunsFromDirectory(str(tmp_path))
    runs.Reload()
    provider = data_provider.MultiplexerDataProvider(runs, "")
    served = ProjectorPlugin(TBContext(logdir=str(tmp_path), multiplexer=runs, data_provider=provider))
    served._update_configs()
    (embedding,) = served._configs["."].embeddings
    assert list(embedding.tensor_shape) == [6, 5] and list(embedding.sprite.single_image_dim) == [THUMBNAIL] * 2
    assert embedding.tensor_name == "patch embeddings", "they are CLIP's only if the targets are"
    assert np.allclose(_read_tensor_tsv_file(str(tmp_path / embedding.tensor_path)), points.vectors, rtol=1e-3)
    lines = (tmp_path / embedding.metadata_path).read_text().splitlines()
    assert lines[:3] == ["kind\tframe\tsplit", "true\t0\ttrain", "predicted\t1\ttrain"] and len(lines) == 7
    sprite = np.asarray(Image.open(tmp_path / embedding.sprite.image_path))
    assert sprite.shape == (3 * THUMBNAIL, 3 * THUMBNAIL, 3)
    for i in range(6):
        row, column = divmod(i, 3)
        assert (sprite[row * THUMBNAIL + 4, column * THUMBNAIL + 4] == 40 * i).all()


def test_a_folder_that_cannot_be_written_raises_for_the_logger_to_report(tmp_path, points):
    (tmp_path / "projector").touch()
    with pytest.raises(OSError):
        write_points(tmp_path, points)


def test_a_run_leaves_them(finished):
    lines = (finished / "tensorboard" / "projector" / "metadata.tsv").read_text().splitlines()
    assert lines[0] == "kind\tframe\tpatch\tsplit" and len(lines) == 1 + 2 * 10 * 8
    assert {line.split("\t")[3] for line in lines[1:]} == {"train", "val"}
    vectors = np.loadtxt(finished / "tensorboard" / "projector" / "vectors.tsv", delimiter="\t")
    assert vectors.shape == (160, 8) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-2)
