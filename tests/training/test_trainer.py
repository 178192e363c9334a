"""What a step, an epoch and a fit do, against torch's own functions and brute force."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hnerv.data.batches import clip_loss_of
from hnerv.errors import RunError, UserError
from hnerv.losses import cosine_loss, pixel_loss
from hnerv.metrics import patch_mse, psnr
from hnerv.schedule import parse_lr
from hnerv.training import step as step_module
from hnerv.training import trainer as trainer_module
from hnerv.training.optim import MODEL_PARTS, OPTIMIZERS
from hnerv.training.values import parameter_values

SYNCS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal"}


def orders(trainer, epochs):
    found = []
    for epoch in range(epochs):
        trainer.state.epoch = epoch
        found.append(torch.cat([batch.times[: batch.real] for batch in trainer.remaining_batches()]).long().tolist())
    return found


def test_each_epoch_shows_every_training_frame_once_in_its_own_order(make):
    trainer = make()
    found = orders(trainer, 4)
    assert all(sorted(order) == list(trainer.model.scene.train) for order in found)
    assert len({tuple(order) for order in found}) == 4
    assert found == orders(make(), 4)
    assert found != orders(make(seed=1), 4)


def test_a_batch_holds_its_frames_and_targets(make, film):
    import numpy as np
    from PIL import Image

    for batch in make().remaining_batches():
        assert len(batch.times) == len(batch.frames) == len(batch.clip)
        for time, frame, clip in zip(batch.times[: batch.real].int().tolist(), batch.frames, batch.clip, strict=False):
            pixels = torch.from_numpy(np.array(Image.open(film / f"{time}.png"))).permute(2, 0, 1)
            assert torch.equal((frame * 255).round().byte(), pixels)
            assert clip.norm(dim=-1).sub(1).abs().max() < 1e-6
        assert batch.clip.norm(dim=-1).sub(1).abs().max() < 1e-6


def test_the_rest_of_an_epoch_is_what_was_left(make):
    trainer = make()
    whole = [batch.times.tolist() for batch in trainer.remaining_batches()]
    trainer.state.step_in_epoch = 2
    assert [batch.times.tolist() for batch in trainer.remaining_batches()] == whole[2:]


def test_warm_up_neither_computes_nor_changes_the_clip_head(make, console):
    trainer = make(epochs=2)
    trainer.model.clip_head.register_forward_hook(lambda *_: pytest.fail("the CLIP head was computed"))
    before = copy.deepcopy(trainer.model.clip_head.state_dict())
    for batch in trainer.remaining_batches():
        row = trainer.step(batch)
        assert row[2] == 0 and row[3] == row[1] and row[5 + MODEL_PARTS.index("clip_head")] == 0
    assert all(torch.equal(before[key], value) for key, value in trainer.model.clip_head.state_dict().items())


def test_after_warm_up_the_clip_head_learns(make):
    trainer = make()
    trainer.step(next(trainer.remaining_batches()))
    trainer.state.epoch = 2
    before = copy.deepcopy(trainer.model.clip_head.state_dict())
    row = trainer.step(next(trainer.remaining_batches()))
    assert row[2] > 0 and row[5 + MODEL_PARTS.index("clip_head")] > 0
    assert not torch.equal(before["out.weight"], trainer.model.clip_head.out.weight)


def test_the_learning_rate_of_each_step_is_the_schedule(make):
    trainer = make(epochs=3, lr=0.01, lr_type="cosine_0.3_2_0.1", embed_lr_factor=7.0)
    factor, total = parse_lr("cosine_0.3_2_0.1"), 3 * trainer.steps_per_epoch
    for number in range(total):
        trainer.state.epoch, trainer.state.step_in_epoch = divmod(number, trainer.steps_per_epoch)
        trainer.step(next(trainer.remaining_batches()))
        network, codes = (group["lr"].item() for group in trainer.optimizer.param_groups)
        assert network == pytest.approx(0.01 * factor(number / total), rel=1e-6)
        assert codes == pytest.approx(7 * network, rel=1e-6)
        assert trainer.learning_rate(number) == 0.01 * factor(number / total)


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
@pytest.mark.parametrize("grad_clip", [0, 0.01, 1000])
def test_a_step_against_torch(make, embedding, grad_clip):
    """Loss terms, norms, clipping and the update are what torch's own functions give for the same batch."""
    settings = {"optimizer": "adamw", "weight_decay": 0.1, "embed_lr_factor": 5.0, "blend_freq": 1}
    trainer = make(embedding=embedding, grad_clip=grad_clip, **settings)
    trainer.state.epoch, weight = 3, trainer.config.loss.clip_loss_weight
    twin, optimizer = copy.deepcopy(trainer.model), None
    batch = next(trainer.remaining_batches())
    assert len(batch.times) - batch.real == int(embedding != "encoder")
    row = trainer.step(batch)

    prediction = twin(batch.times, batch.frames)
    pixel = pixel_loss("L2", prediction.rgb, batch.frames)
    clip = cosine_loss(prediction.clip, batch.clip)
    (pixel + weight * clip).backward()
    parts = [[p.grad for p in getattr(twin, name).parameters() if p.grad is not None] for name in MODEL_PARTS]
    norms = [torch.nn.utils.get_total_norm(part) for part in parts]
    total = torch.nn.utils.clip_grad_norm_(twin.parameters(), grad_clip or float("inf"))
    pairs = prediction.rgb[: batch.real], batch.frames[: batch.real]
    quality = psnr(patch_mse(*pairs, twin.scene.grid)).mean()
    expected = torch.stack([quality, pixel, clip, pixel + weight * clip, total, *norms]).detach()
    torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-8)

    codes, rate = {id(p) for p in getattr(twin.embedding, "levels", [])}, trainer.learning_rate(trainer.global_step)
    groups = [
        {"params": [p for p in twin.parameters() if (id(p) in codes) == wanted], "lr": rate * factor}
        for wanted, factor in ((False, 1.0), (True, 5.0))
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.1, foreach=False)
    optimizer.step()
    for ours, theirs in zip(trainer.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)
    size = torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters() if p.grad is not None])
    assert not grad_clip or size <= grad_clip * (1 + 1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("epoch", [0, 3])
def test_a_step_reads_nothing_from_the_device(make, epoch, optimizer):
    class Watch(TorchDispatchMode):
        seen: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    trainer = make(pixel_loss="Fusion10_freq", optimizer=optimizer, blend_freq=1, batch_size=2)
    trainer.state.epoch = epoch
    batches = itertools.cycle(list(trainer.remaining_batches()))
    trainer.step(next(batches))  # the optimiser's state is made on the first
    with Watch() as watch:
        for _ in range(5):
            trainer.step(next(batches))
    assert len(watch.seen) > 500 and not SYNCS & set(watch.seen)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_loss_goes_down(make, console, optimizer):
    trainer = make(epochs=30, eval_freq=0, pixel_loss_warmup_epochs=5, lr=0.01, optimizer=optimizer)
    trainer.fit(console)
    values = trainer.logger.values
    assert values["Train/PSNR"][30] > values["Train/PSNR"][1] + 5
    assert values["Train/Loss/clip_loss"][30] < values["Train/Loss/clip_loss"][6] - 0.05


def test_bf16_on_the_cpu(make, console):
    trainer = make(precision="bf16")
    trainer.fit(console)
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert trainer.logger.values["Train/PSNR"][5] > trainer.logger.values["Train/PSNR"][1]


def test_parameter_statistics_are_of_the_population(make):
    import numpy as np

    trainer = make()
    values = parameter_values(trainer.training_step.parts)
    for name in ("rgb_head", "clip_head"):
        flat = np.concatenate([p.detach().numpy().ravel() for p in getattr(trainer.model, name).parameters()])
        assert values[f"Model/Params/{name}_mean"] == pytest.approx(flat.mean(dtype=float), abs=1e-9)
        assert values[f"Model/Params/{name}_std"] == pytest.approx(flat.std(dtype=float), abs=1e-9)


def test_best_is_by_the_frame_psnr_of_unseen_frames(make, console):
    trainer = make(epochs=6, eval_freq=1)
    trainer.fit(console)
    scores = trainer.logger.values["Eval/Frame/val_psnr_frame"]
    best = torch.load(trainer.folder.best)
    assert best["progress"]["epoch"] == max(scores, key=scores.get)
    assert trainer.state.best == best["progress"]["best"] == max(scores.values())


def test_a_resumed_run_knows_the_best_so_far(make, console):
    trainer = make()
    trainer.fit(console)
    trainer.state.best = 99.0
    again = make()
    again.load(copy.deepcopy(trainer.checkpoint()))
    assert (again.state.best, again.state.evaluation) == (99.0, trainer.state.evaluation)
    again.evaluate()
    assert again.state.best == 99.0


@pytest.mark.parametrize("freq", [0, 1, 4])
def test_evaluations_are_due_as_asked_and_at_the_end(make, console, freq):
    trainer = make(epochs=6, eval_freq=freq)
    trainer.fit(console)
    expected = {0: [6], 1: [1, 2, 3, 4, 5, 6], 4: [4, 6]}[freq]
    assert list(trainer.logger.values["Eval/Frame/train_psnr"]) == expected


def test_a_fit_of_a_finished_run_does_nothing(make, console):
    trainer = make(epochs=1)
    trainer.fit(console)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.fit(console)
    assert all(torch.equal(before[key], value) for key, value in trainer.model.state_dict().items())


class TestNotFinite:
    """The step, the tag and the last good checkpoint are named, and that checkpoint stays good."""

    def spoil(self, monkeypatch, after):
        count = itertools.count(1)

        def loss(*args):
            return pixel_loss(*args) * (float("nan") if next(count) >= after else 1.0)

        monkeypatch.setattr(step_module, "pixel_loss", loss)

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_a_loss(self, make, console, monkeypatch, optimizer):
        self.spoil(monkeypatch, after=5)
        trainer = make(optimizer=optimizer)
        with pytest.raises(RunError) as error:
            trainer.fit(console)
        text = str(error.value)
        assert text.startswith("Train_Batch/pixel_loss is nan at step 5 (epoch 2); the last good checkpoint is ")
        assert "latest.pt" in text and "--lr" in text
        state = torch.load(trainer.folder.latest)
        assert state["progress"]["epoch"] == 1
        assert all(value.isfinite().all() for value in state["model"].values())

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_before_any_checkpoint(self, make, console, monkeypatch, optimizer):
        self.spoil(monkeypatch, after=1)
        with pytest.raises(RunError, match="pixel_loss is nan at step 1 .*there is no checkpoint yet"):
            (trainer := make(optimizer=optimizer)).fit(console)
        assert not trainer.folder.path.exists()

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_the_first_clip_loss(self, make, console, monkeypatch, optimizer):
        """At the step where the optimiser meets the CLIP head."""
        monkeypatch.setattr(step_module, "clip_loss_of", lambda *args: clip_loss_of(*args) * float("nan"))
        trainer = make(optimizer=optimizer)
        with pytest.raises(RunError, match=r"Train_Batch/clip_loss is nan at step 7 \(epoch 3\); the last good"):
            trainer.fit(console)
        assert torch.load(trainer.folder.latest)["progress"]["epoch"] == 2

    def test_a_signal_does_not_save_what_went_wrong(self, make, console, monkeypatch):
        import signal

        self.spoil(monkeypatch, after=5)
        trainer, steps = make(), itertools.count(1)
        console.step = lambda: signal.raise_signal(signal.SIGTERM) if next(steps) == 5 else None
        with pytest.raises(RunError, match="step 5"):
            trainer.fit(console)
        assert torch.load(trainer.folder.latest)["progress"]["step"] == 3

    def test_a_weight(self, make, console, monkeypatch):
        """Of the decoder, spoiled by the last step of an epoch: no checkpoint holds it."""
        original = trainer_module.Trainer.advance

        def spoiling(self):
            original(self)
            if self.global_step == 6:
                with torch.no_grad():
                    self.model.decoder.stem.bias[0] = float("inf")

        monkeypatch.setattr(trainer_module.Trainer, "advance", spoiling)
        trainer = make()
        with pytest.raises(
            RunError, match=r"the norm of a weight is inf at step 6 \(epoch 2\); the last good checkpoint"
        ):
            trainer.fit(console)
        assert torch.load(trainer.folder.latest)["progress"]["epoch"] == 1

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_an_absurd_learning_rate(self, make, console, optimizer):
        trainer = make(lr=1e30, lr_type="constant", grad_clip=0, optimizer=optimizer)
        with pytest.raises(RunError, match=" is (nan|inf) at step ") as error:
            trainer.fit(console)
        if trainer.folder.latest.exists():
            assert all(v.isfinite().all() for v in torch.load(trainer.folder.latest)["model"].values())
        assert "lower --lr" in str(error.value)

    def test_an_evaluation(self, make, console, monkeypatch):
        monkeypatch.setattr("hnerv.evaluation.measure.ms_ssim", lambda a, b: torch.full((len(a),), float("nan")))
        trainer = make()
        with pytest.raises(RunError, match=r"Eval/Frame/train_ms_ssim is nan at step 6 \(epoch 2\)"):
            trainer.fit(console)
        assert not any("Eval" in tag for tag in trainer.logger.values)


def test_a_checkpoint_of_another_model_is_refused_in_words(make):
    trainer = make()
    state = trainer.checkpoint()
    state["model"].popitem()
    with pytest.raises(UserError, match="has weights that do not match its configuration"):
        make().load(state)


@pytest.mark.cuda
def test_cuda_steps_without_waiting_for_the_device(make, console, no_sync):
    trainer = make(device="cuda", pixel_loss="Fusion10", precision="auto", blend_freq=1)
    for epoch in (0, 3):
        trainer.state.epoch, trainer.state.step_in_epoch = epoch, 0
        batches = trainer.remaining_batches()
        trainer.step(next(batches))
        with no_sync():
            row = trainer.step(next(batches))
        assert row.isfinite().all()
    trainer.state.epoch = trainer.state.step_in_epoch = 0
    trainer.fit(console)
