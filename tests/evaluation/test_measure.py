"""Every number of a report against loops and torchmetrics; unseen frames stay unseen."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from hnerv.evaluation import eval_values, evaluate
from hnerv.evaluation.measure import clip_measures
from hnerv.evaluation.summary import CLIP_COLUMNS, eval_histograms
from hnerv.metrics import ms_ssim

SPLITS = {"train": (0, 1, 2, 4, 5, 6), "val": (3, 7)}


def decoded(world, position: int, frames=None) -> torch.Tensor:
    """(3, H, W) uint8, one frame at a time."""
    with torch.no_grad():
        seen = None if frames is None else frames[position : position + 1].float() / 255
        rgb = world.model(torch.tensor([float(position)]), seen).rgb[0]
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("kind", ["grid", "encoder", "pe", "convnext"])
def test_pixels_against_torchmetrics_on_each_patch(world, kind):
    here = world(kind)
    for (_, split), positions in zip(evaluate(here.model, here.store).splits(), SPLITS.values(), strict=True):
        assert split.positions.tolist() == list(positions)
        for i, position in enumerate(positions):
            picture, truth = decoded(here, position), here.frames[position]
            whole = peak_signal_noise_ratio(picture.double(), truth.double(), data_range=255.0)
            assert split.psnr_frame[i] == pytest.approx(whole.item(), abs=1e-4)
            for patch in range(8):
                top, left = patch // 4 * 16, patch % 4 * 16
                cut = (slice(None), slice(top, top + 16), slice(left, left + 16))
                one = peak_signal_noise_ratio(picture[cut].double(), truth[cut].double(), data_range=255.0)
                assert split.psnr[i, patch] == pytest.approx(one.item(), abs=1e-4)
            similar = ms_ssim(picture[None] / 255, truth[None] / 255)
            assert split.ms_ssim[i] == pytest.approx(similar.item(), abs=1e-5)


@pytest.mark.parametrize("kind", ["grid", "convnext"])
def test_patches_decoded_alone_and_stitched_give_the_same_report(world, kind):
    here = world(kind)
    report = evaluate(here.model, here.store)
    for i, position in enumerate(SPLITS["train"]):
        with torch.no_grad():
            alone = [here.model.decode_patch(torch.tensor([float(position)]), p).rgb[0] for p in range(8)]
        rows = [torch.cat(alone[row * 4 : row * 4 + 4], dim=2) for row in range(2)]
        picture = (torch.cat(rows, dim=1).clamp(0, 1) * 255).round()
        whole = peak_signal_noise_ratio(picture.double(), here.frames[position].double(), data_range=255.0)
        assert report.train.psnr_frame[i] == pytest.approx(whole.item(), abs=0.02)  # a pixel may round the other way


@pytest.mark.parametrize("embedding", ["grid", "pe"])
def test_similarities_against_loops(world, embedding):
    here = world(embedding)
    report = evaluate(here.model, here.store)
    with torch.no_grad():
        predicted = {p: here.model(torch.tensor([float(p)])).clip[0].double() for p in range(8)}
    truth = here.embeddings.double()
    mean = torch.stack([truth[p, k] for p in SPLITS["train"] for k in range(8)]).mean(0)
    unit = lambda v: v / v.norm()  # noqa: E731
    for (_, split), positions in zip(report.splits(), SPLITS.values(), strict=True):
        for i, p in enumerate(positions):
            for k in range(8):
                cosine = unit(predicted[p][k]) @ unit(truth[p, k])
                centred = unit(predicted[p][k] - mean) @ unit(truth[p, k] - mean)
                scores = {
                    (q, j): (unit(predicted[q][j]) @ unit(truth[p, k])).item() for q in range(8) for j in range(8)
                }
                ranking = sorted(scores, key=scores.get, reverse=True)
                hits = [patch == k and abs(frame - p) <= 1 for frame, patch in ranking]
                assert split.clip.sim[i, k] == pytest.approx(cosine.item(), abs=1e-5)
                assert split.clip.centred[i, k] == pytest.approx(centred.item(), abs=1e-5)
                for top, found in ((1, split.clip.found), (5, split.clip.found5), (10, split.clip.found10)):
                    assert bool(found[i, k]) == any(hits[:top])
                assert bool(split.clip.exact[i, k]) == (ranking[0] == (p, k))


@pytest.mark.cuda
def test_embeddings_on_the_device_give_measures_on_the_cpu():
    draw = torch.Generator().manual_seed(0)
    targets = torch.randn(40, 8, 16, generator=draw)
    given = targets + torch.randn(targets.shape, generator=draw), targets, torch.randperm(40), targets.mean((0, 1))
    on_device = clip_measures(given[0].cuda(), given[1].cuda(), given[2], given[3].cuda())
    for a, b in zip(on_device, clip_measures(*given), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)  # of the same device, too


def test_values_by_hand(world):
    here = world()
    report = evaluate(here.model, here.store)
    values = eval_values(report)
    for name, split in report.splits():
        frames = [sum(row) / 8 for row in split.psnr.double().tolist()]
        mean = sum(frames) / len(frames)
        means = {
            column: sum(map(sum, measure.double().tolist())) / measure.numel()
            for column, measure in zip(CLIP_COLUMNS, split.clip, strict=True)
        }
        expected = {
            f"Frame/{name}_psnr": mean,
            f"PSNR_Stats/{name}_std": (sum((f - mean) ** 2 for f in frames) / len(frames)) ** 0.5,
            f"PSNR_Stats/{name}_min": min(frames),
            f"PSNR_Stats/{name}_max": max(frames),
            f"Info/num_{name}_patches": 8 * len(frames),
            f"Patch/{name}_psnr_std": split.psnr.double().var(unbiased=False).item() ** 0.5,
            f"Frame/{name}_clip_dist": 1 - means["clip_sim"],
            f"Patch/{name}_clip_sim_std": split.clip.sim.double().var(unbiased=False).item() ** 0.5,
            **{f"Frame/{name}_{column}": value for column, value in means.items()},
        }
        assert {tag: values[f"Eval/{tag}"] for tag in expected} == pytest.approx(expected, abs=1e-9)
        histogram = eval_histograms(report)[f"Eval/Histogram/{name}_psnr_distribution"]
        assert histogram.tolist() == pytest.approx(frames, abs=1e-4)


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_unseen_frames_have_no_influence(world, store_of, embedding):
    """Other pixels and targets in their place: the training report and the decoded unseen frames stay the same."""
    here = world(embedding)
    first = evaluate(here.model, here.store)
    before = [decoded(here, p) for p in SPLITS["val"]]
    frames, embeddings = here.frames.clone(), here.embeddings.clone()
    for p in SPLITS["val"]:
        frames[p], embeddings[p] = 255 - frames[p], -embeddings[p]
    store = store_of(frames, here.scene, embeddings)
    here.model.embedding.refresh(store.frames)
    second = evaluate(here.model, store)
    for a, b in zip(first.train[:4], second.train[:4], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first.train.clip[:5], second.train.clip[:5], strict=True):  # all but the true ranking's agreement
        assert torch.equal(a, b)
    assert not torch.equal(first.val.psnr, second.val.psnr)
    assert all(torch.equal(a, decoded(here, p)) for a, p in zip(before, SPLITS["val"], strict=True))


def test_training_frames_come_from_the_stored_codes_alone(world, store_of):
    """Evaluating against other pixels does not encode these."""
    here = world("encoder")
    codes = here.model.embedding.codes.clone()
    evaluate(here.model, store_of(255 - here.frames, here.scene, here.embeddings))
    assert torch.equal(here.model.embedding.codes, codes)


def test_encode_lets_the_encoder_see_unseen_frames_alone(world):
    here = world("encoder")
    plain, encoded = evaluate(here.model, here.store), evaluate(here.model, here.store, "encode")
    assert torch.equal(plain.train.psnr, encoded.train.psnr)
    for i, position in enumerate(SPLITS["val"]):
        picture = decoded(here, position, here.frames)
        whole = peak_signal_noise_ratio(picture.double(), here.frames[position].double(), data_range=255.0)
        assert encoded.val.psnr_frame[i] == pytest.approx(whole.item(), abs=1e-4)
    assert encoded.unseen == "encode"


def test_without_unseen_frames_or_targets(world):
    here = world(targets=False, val=())
    report = evaluate(here.model, here.store)
    assert report.val is None and report.train.clip is None
    assert not [tag for tag in eval_values(report) if "val_" in tag or "clip" in tag or "Gap" in tag]


@pytest.mark.parametrize(("terminal", "progress"), [(True, True), (True, False), (False, True)])
def test_a_bar_over_the_frames_is_for_a_terminal_alone(world, monkeypatch, capsys, terminal, progress):
    here = world()
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    evaluate(here.model, here.store, progress=progress)
    out, err = capsys.readouterr()
    assert out == "" and ("evaluate" in err) == ("8/8" in err) == (terminal and progress)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_restored(world, training):
    here = world()
    evaluate(here.model.train(training), here.store)
    assert here.model.training == training
