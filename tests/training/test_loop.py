"""The loops on small drawn pictures: what moves, what stays, that it can be repeated, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from pdnet.data.index import index_clips, index_stills
from pdnet.data.streams import EpochBatches, PairDataset, Pairs, StillDataset, Stills
from pdnet.errors import DataError, TrainingError
from pdnet.losses import Loss, LossConfig
from pdnet.model import ModelConfig, PDNet
from pdnet.training import loop
from pdnet.training.config import PretrainConfig, TrainConfig
from pdnet.training.schedule import Schedule
from pdnet.training.task import Task

SIZE = 64
MODEL = ModelConfig(backbone="resnet18", width=16, part_width=16, attention_width=8, parts=3)
LOSSES = LossConfig(semantic_features="none")
#: image, video, video, image, video: image iterations meet momentum that is not zero
TRAIN = TrainConfig(
    epochs=1, batch_size=4, image_batch_size=2, image_backbone_lr=1e-3, video_backbone_lr=1e-3, video_rest_lr=5e-3,
    weight_decay=1e-2, precision="fp32", workers=0, cache_mb=64,
)  # fmt: skip


class WatchedTask(Task):
    """Keeps a copy of everything that could move, before each iteration."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.history: list[tuple[str, dict[str, Tensor]]] = []

    def video(self, batch: Pairs) -> Loss:
        self.history.append(("video", weights(self)))
        return super().video(batch)

    def image(self, batch: Stills) -> Loss:
        self.history.append(("image", weights(self)))
        return super().image(batch)

    def moved(self) -> list[tuple[str, set[str]]]:
        """For each iteration its phase and the groups in which at least one weight changed."""
        states = [*(state for _, state in self.history), weights(self)]
        return [
            (phase, {group_of(name) for name in before if not torch.equal(before[name], after[name])})
            for (phase, before), after in zip(self.history, states[1:], strict=True)
        ]


def group_of(name: str) -> str:
    if name.startswith("network.encoder.backbone."):
        return "backbone"
    if name.startswith("loss.features."):
        return "frozen"
    assert name.startswith(("network.", "loss.basis."))
    return "rest"


def weights(task: Task) -> dict[str, Tensor]:
    """Copies of every parameter, and of the frozen network's running statistics."""
    state = dict(task.named_parameters())
    state |= {name: value for name, value in task.named_buffers() if name.startswith("loss.features.")}
    return {name: value.detach().clone() for name, value in state.items()}


def make_task(
    kind: type[Task] = Task, *, model: ModelConfig = MODEL, losses: LossConfig = LOSSES, **options: Any
) -> Any:
    torch.manual_seed(0)
    return kind(PDNet(model), losses, seed=0, **options)


@pytest.fixture(scope="module")
def videos(portraits: Path) -> PairDataset:
    return PairDataset(index_clips(portraits, splits=("train",)), size=SIZE, seed=0, cache_mb=64)


@pytest.fixture(scope="module")
def images(portraits: Path) -> StillDataset:
    return StillDataset(index_stills(portraits / "Stills"), size=SIZE, seed=0, stream="image", cache_mb=64)


def test_image_iterations_move_the_backbone_alone_and_video_iterations_both(
    videos: PairDataset, images: StillDataset
) -> None:
    task = make_task(WatchedTask)
    assert {group_of(name) for name in weights(task)} == {"backbone", "rest", "frozen"}
    loop.train(task, videos, images, TRAIN, seed=0)
    both = {"backbone", "rest"}
    assert task.moved() == [
        ("image", {"backbone"}),
        ("video", both),
        ("video", both),
        ("image", {"backbone"}),
        ("video", both),
    ]


def test_a_rate_for_the_rest_moves_it_in_image_iterations_too(videos: PairDataset, images: StillDataset) -> None:
    task = make_task(WatchedTask)
    loop.train(task, videos, images, replace(TRAIN, image_rest_lr=1e-3, video_backbone_lr=0.0), seed=0)
    assert [groups for phase, groups in task.moved() if phase == "image"] == [{"backbone", "rest"}] * 2
    assert [groups for phase, groups in task.moved() if phase == "video"] == [{"rest"}] * 3


def test_a_phase_without_any_rate_moves_nothing(videos: PairDataset, images: StillDataset) -> None:
    task = make_task(WatchedTask)
    log = loop.train(task, videos, images, replace(TRAIN, image_backbone_lr=0.0), seed=0)
    assert [groups for phase, groups in task.moved() if phase == "image"] == [set(), set()]
    assert len(log) == 5


def test_weights_are_trainable_again_afterwards(videos: PairDataset, images: StillDataset) -> None:
    task = make_task()
    loop.train(task, videos, images, replace(TRAIN, video_backbone_lr=0.0), seed=0)
    assert all(parameter.requires_grad for parameter in task.network.parameters())
    assert not any(parameter.requires_grad for parameter in task.loss.features.parameters())


def test_log_has_a_row_for_each_iteration(videos: PairDataset, images: StillDataset) -> None:
    log = loop.train(make_task(), videos, images, TRAIN, seed=0)
    schedule = Schedule(TRAIN, video_batches=3)
    assert log["step"].tolist() == list(range(5))
    assert log["phase"].tolist() == ["image", "video", "video", "image", "video"]
    for row in log.itertuples():
        rates = schedule.step(row.Index).rates
        assert (row.lr_backbone, row.lr_rest) == (rates["backbone"], rates["rest"])
    terms = [
        "final",
        *(f"{term}_{frame}" for frame in ("t", "ref")
          for term in ("encoder", "saliency", "geometric", "area", "semantic", "orthonormal")),
    ]  # fmt: skip
    assert set(log) == {"step", "epoch", "phase", "loss", *terms, "lr_backbone", "lr_rest", "data_seconds", "seconds"}
    video = log[log["phase"] == "video"]
    assert np.isfinite(video[terms].to_numpy()).all()
    auxiliary = {name: video[[f"{name}_t", f"{name}_ref"]].to_numpy() @ [0.8, 0.64] for name in
                 ("encoder", "saliency", "geometric", "area", "semantic", "orthonormal")}  # fmt: skip
    np.testing.assert_allclose(video["loss"], video["final"] + sum(auxiliary.values()), rtol=1e-5)
    image = log[log["phase"] == "image"]
    assert image[[name for name in terms if name.endswith("_ref") or "geometric" in name]].isna().all(axis=None)
    assert log["seconds"].is_monotonic_increasing


def test_two_runs_with_one_seed_are_the_same_to_the_last_bit(videos: PairDataset, images: StillDataset) -> None:
    def run(seed: int) -> tuple[dict[str, Tensor], pd.DataFrame]:
        task = make_task()
        np.random.seed(torch.seed() % 2**32)
        log = loop.train(task, videos, images, TRAIN, seed=seed)
        return task.state_dict(), log.drop(columns=["seconds", "data_seconds"])

    (state, log), (again, log_again), (_, other_log) = run(0), run(0), run(1)
    assert all(torch.equal(state[name], again[name]) for name in state)
    pd.testing.assert_frame_equal(log, log_again, check_exact=True)
    assert log["loss"].tolist() != other_log["loss"].tolist()


def test_gradients_are_clipped_group_by_group(videos: PairDataset, images: StillDataset) -> None:
    config = replace(TRAIN, momentum=0.0, weight_decay=0.0, clip_grad_norm=1e-4, late_factor=1.0, poly_power=0.0)
    task = make_task(WatchedTask)
    loop.train(task, videos, images, config, seed=0)
    states = [*(state for _, state in task.history), weights(task)]
    for (phase, _), before, after in zip(task.history, states[:-1], states[1:], strict=True):
        rates = {"backbone": 1e-3, "rest": 5e-3 if phase == "video" else 0.0}
        for group, rate in rates.items():
            names = [name for name in before if group_of(name) == group]
            way = torch.cat([(after[name] - before[name]).double().flatten() for name in names]).norm().item()
            assert way <= rate * 1e-4 * 1.1  # the length of the step is the rate times the clipped norm
            if rate:
                assert way > 0


def test_bfloat16_keeps_weights_and_losses_in_float32(videos: PairDataset, images: StillDataset) -> None:
    task = make_task(dtype=torch.bfloat16)
    log = loop.train(task, videos, images, TRAIN, seed=0)
    assert np.isfinite(log["loss"]).all()
    assert {parameter.dtype for parameter in task.parameters()} == {torch.float32}
    exact = loop.train(make_task(), videos, images, TRAIN, seed=0)
    assert log["loss"][0] != exact["loss"][0]  # it was another number format ...
    assert log["loss"][0] == pytest.approx(exact["loss"][0], rel=0.05)  # ... of the same computation


@pytest.mark.parametrize(
    "model", [replace(MODEL, ipda=False), replace(MODEL, parts=1), replace(MODEL, references=2)], ids=str
)
def test_every_kind_of_network_trains(portraits: Path, images: StillDataset, model: ModelConfig) -> None:
    table = index_clips(portraits, splits=("train",))
    videos = PairDataset(table, size=SIZE, seed=0, references=model.references, cache_mb=64)
    log = loop.train(make_task(model=model), videos, images, TRAIN, seed=0)
    assert np.isfinite(log["loss"]).all()
    assert ("geometric_t" in log) == (model.ipda and model.parts > 1)


def test_a_loss_that_is_no_number_stops_training(videos: PairDataset, images: StillDataset) -> None:
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step [1-4]; a lower learning rate usually"):
        loop.train(make_task(), videos, images, replace(TRAIN, image_backbone_lr=1e30), seed=0)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d"):
        loop.pretrain(make_task(), images, PretrainConfig(epochs=3, batch_size=2, lr=1e30), seed=0, workers=0)


def test_a_stream_without_frames_is_an_error(portraits: Path, images: StillDataset, videos: PairDataset) -> None:
    nothing = PairDataset(index_clips(portraits, splits=("train",)).iloc[:0], size=SIZE, seed=0)
    with pytest.raises(DataError, match="the video stream has no frames"):
        loop.train(make_task(), nothing, images, TRAIN, seed=0)
    no_stills = StillDataset(pd.DataFrame({"image": [], "mask": []}), size=SIZE, seed=0, stream="image")
    with pytest.raises(DataError, match="the image stream has no frames"):
        loop.train(make_task(), videos, no_stills, TRAIN, seed=0)


def test_pretraining_moves_the_encoder_alone(images: StillDataset) -> None:
    task = make_task(parts=False)
    before = weights(task)
    log = loop.pretrain(task, images, PretrainConfig(epochs=2, batch_size=2, warmup=0.4), seed=0, workers=0)
    after = weights(task)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("network.encoder.")}
    assert list(log) == ["step", "epoch", "phase", "loss", "lr_encoder", "seconds"]
    assert log["epoch"].tolist() == [0, 0, 0, 1, 1, 1]  # 5 images in batches of 2
    assert set(log["phase"]) == {"pretrain"}
    factors = [1 / 3, 2 / 3, 1, 0.75**0.9, 0.5**0.9, 0.25**0.9]
    assert log["lr_encoder"].tolist() == pytest.approx([2e-3 * factor for factor in factors])


def test_pretraining_for_no_epochs_hands_on_the_network(images: StillDataset) -> None:
    task = make_task(parts=False)
    before = weights(task)
    log = loop.pretrain(task, images, PretrainConfig(epochs=0), seed=0, workers=0)
    after = weights(task)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(log) == 0
    assert list(log) == ["step", "epoch", "phase", "loss", "lr_encoder", "seconds"]


def test_pretraining_learns(images: StillDataset) -> None:
    config = PretrainConfig(epochs=20, batch_size=5, lr=5e-3)
    log = loop.pretrain(make_task(parts=False), images, config, seed=0, workers=0)
    assert len(log) == 20
    assert log["loss"].iloc[-3:].mean() < 0.6 * log["loss"].iloc[0]


def test_training_learns(portraits: Path) -> None:
    """Three frames and two images, seen over and over: the loss of the final output falls to a fraction."""
    frames = index_clips(portraits, splits=("train",)).iloc[:3]
    videos = PairDataset(frames, size=SIZE, seed=0, cache_mb=64)
    images = StillDataset(index_stills(portraits / "Stills").iloc[:2], size=SIZE, seed=0, stream="image", cache_mb=64)
    config = replace(
        TRAIN, epochs=16, batch_size=3, image_batch_size=2, image_backbone_lr=1e-2, video_backbone_lr=5e-3,
        video_rest_lr=2e-2, weight_decay=5e-4, late_factor=1.0,
    )  # fmt: skip
    log = loop.train(make_task(), videos, images, config, seed=0)
    video = log[log["phase"] == "video"]
    assert len(log) == 32
    for term in ("final", "encoder_t", "saliency_t"):
        assert video[term].iloc[-3:].mean() < 0.6 * video[term].iloc[0], term


def test_batches_of_the_log_are_those_of_the_schedule(videos: PairDataset, images: StillDataset) -> None:
    """The loop draws from each stream in order, so that `Step.batch` says which batch it was."""
    seen: dict[str, list[Tensor]] = {"image": [], "video": []}

    class Collecting(Task):
        def video(self, batch: Pairs) -> Loss:
            seen["video"].append(batch.image_t.clone())
            return super().video(batch)

        def image(self, batch: Stills) -> Loss:
            seen["image"].append(batch.image.clone())
            return super().image(batch)

    config = replace(TRAIN, epochs=2)
    loop.train(make_task(Collecting), videos, images, config, seed=3)
    schedule = Schedule(config, video_batches=3)
    for step in map(schedule.step, range(schedule.steps)):
        dataset: Any = videos if step.phase == "video" else images
        size = config.batch_size if step.phase == "video" else config.image_batch_size
        (keys,) = EpochBatches(len(dataset), size, seed=3, stream=step.phase, start=step.batch, stop=step.batch + 1)
        assert torch.equal(seen[step.phase][step.batch], torch.stack([dataset[key][0] for key in keys]))


def test_memory_that_is_not_enough_is_said_with_a_remedy(videos: PairDataset, images: StillDataset) -> None:
    class LargeTask(Task):
        def video(self, batch: Pairs) -> Loss:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.raises(
        TrainingError, match=r"not enough memory for step 1; a smaller train\.batch_size or train\.size"
    ):
        loop.train(make_task(LargeTask), videos, images, TRAIN, seed=0)
