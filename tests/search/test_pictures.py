"""The contact sheet and the heat map show the right frames and patches and read no other section."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hnerv.codec import file, open_single_chunk, play
from hnerv.errors import UserError
from hnerv.search import Hit, SearchHit, contact_sheet, heat_map, open_index, pictures
from hnerv.search.pictures import decode_frames

CPU = torch.device("cpu")
YELLOW = np.array([255, 214, 0])


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the sections that were read."""
    names, original = [], file.read_section
    monkeypatch.setattr(file, "read_section", lambda container, name: names.append(name) or original(container, name))
    return names


def outlines(image: np.ndarray) -> list[tuple[int, int, int, int]]:
    """(top, left, bottom, right) of the rectangles that are drawn in yellow lines 3 pixels wide, left to right."""
    yellow = (image == YELLOW).all(-1)
    found = []
    corner = yellow[2:-2, 2:-2] & yellow[4:, 2:-2] & yellow[2:-2, 4:] & ~yellow[1:-3, 2:-2] & ~yellow[2:-2, 1:-3]
    for top, left in zip(*(axis + 2 for axis in np.nonzero(corner)), strict=True):
        height, width = int((~yellow[top:, left]).argmax()), int((~yellow[top, left:]).argmax())
        if height > 20 and width > 20:
            found.append((int(top), int(left), int(top) + height, int(left) + width))
    return sorted(found, key=lambda box: box[1])


def test_frames_are_those_of_the_player(alone, clip_run):
    path = alone()
    found = decode_frames(path, [9, 2, 9], CPU)
    expected = list(play(open_single_chunk(path).model(("rgb_head",)), range(12)))
    assert list(found) == [2, 9]
    for frame, picture in found.items():
        assert np.array_equal(picture, expected[frame])
    (picture,) = decode_frames(clip_run / "checkpoints" / "latest.pt", [9], CPU).values()
    assert picture.shape == (32, 64, 3) and np.abs(picture.astype(int) - found[9]).mean() < 3


def test_only_what_the_frames_need_is_read(tmp_path, train, flags, make_film, read):
    from hnerv.cli import main

    video = make_film(tmp_path / "film", count=120)
    words = flags(data=video, clip_targets=None, clip_weights="random", epochs=1, data_split="1_1_1")
    assert train(tmp_path, words) == 0
    main(["encode", str(tmp_path / "run"), "-o", str(tmp_path / "clip.hnerv"), "--no-measure"])
    read.clear()
    decode_frames(tmp_path / "clip.hnerv", [3, 104], CPU)
    finest = [name for name in read if name.startswith("embedding.levels.0")]
    assert finest == ["embedding.levels.0[0:16]", "embedding.levels.0[96:112]"]
    assert "clip_head" not in read and {"rgb_head", "decoder.stem", "decoder.stages.2"} < set(read)


def test_the_sheet_outlines_the_patch_of_every_hit(alone, tmp_path):
    index = open_index(alone(), CPU)
    hits = [SearchHit(hit, index) for hit in (Hit(2, 0, 0.9, 3.0, 1, 4), Hit(9, 6, 0.8, 2.0, 8, 11))]
    contact_sheet(tmp_path / "a" / "sheet.png", hits, "a dog", CPU)
    image = np.array(Image.open(tmp_path / "a" / "sheet.png"))
    tile = pictures.TILE_WIDTH
    patch = tile // 4
    first, second = outlines(image)
    (top, left), (top2, left2) = first[:2], second[:2]
    assert first[2] - top == pytest.approx(patch - 2, abs=1) and first[3] - left == pytest.approx(patch - 2, abs=1)
    assert (top2 - top, left2 - left) == (patch, tile + 12 + 2 * patch)
    frame = decode_frames(index.path, [9], CPU)[9]
    expected = np.array(Image.fromarray(frame).resize((tile, tile // 2), Image.Resampling.LANCZOS))
    inside = image[top2 + 10 : top2 + patch - 10, left2 + 10 : left2 + patch - 10]
    row, col = patch + 11, 2 * patch + 11  # the yellow line is the second pixel of the patch
    assert np.array_equal(inside, expected[row:, col:][: patch - 20, : patch - 20])


def test_other_patches_of_a_hit_are_outlined_thinly(alone, tmp_path):
    index = open_index(alone(), CPU)
    hit = Hit(2, 0, 0.9, 3.0, 1, 4)
    for name, also in (("one", ()), ("two", (7,))):
        contact_sheet(tmp_path / f"{name}.png", [SearchHit(hit._replace(also=also), index)], "a dog", CPU)
    one, two = (np.array(Image.open(tmp_path / f"{name}.png")) for name in ("one", "two"))
    ((top, left, *_),) = outlines(two)
    assert outlines(one) == outlines(two)
    side, origin = pictures.TILE_WIDTH // 4, (top - 1, left - 1)
    changed = (one != two).any(-1)
    rows, cols = np.nonzero(changed[: origin[0] + 2 * side])  # above the caption, which changes too
    box = (rows.min() - origin[0], cols.min() - origin[1], rows.max() - origin[0], cols.max() - origin[1])
    assert box == (side, 3 * side, 2 * side - 1, 4 * side - 1)
    assert not changed[origin[0] + side + 3 : origin[0] + 2 * side - 3, origin[1] + 3 * side + 3 : -15].any()


def test_the_heat_map_shows_the_best_frame_and_its_best_patch(alone, tmp_path):
    index = open_index(alone(), CPU)
    scores = np.zeros((12, 8))
    scores[5] = np.linspace(-1, 1, 8)
    heat_map(tmp_path / "heat.png", index, scores, "a dog", CPU)
    image = np.array(Image.open(tmp_path / "heat.png"))
    ((top, left, bottom, right),) = outlines(image)
    side = 2 * pictures.TILE_WIDTH // 4
    assert (top, left) == (12 + 22 + 6 + side + 1, 12 + 3 * side + 1)
    warm = image[top + 40 : bottom - 10, left + 10 : right - 10].astype(int).mean((0, 1))
    cold = image[top - side + 40 : top - 10, 22 : side - 10].astype(int).mean((0, 1))
    assert warm[0] - warm[2] > cold[0] - cold[2] + 50, "red is the greatest score, blue the least"


def test_a_long_title_and_a_place_that_cannot_be_written(alone, tmp_path):
    hits = [SearchHit(Hit(0, 7, 0.1, 0.0, 0, 0), open_index(alone(), CPU))]
    contact_sheet(tmp_path / "sheet.png", hits, "a dog " * 100, CPU)
    assert len(outlines(np.array(Image.open(tmp_path / "sheet.png")))) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        contact_sheet(tmp_path / "file" / "sheet.png", hits, "a", CPU)
