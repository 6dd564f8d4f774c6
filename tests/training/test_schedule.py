"""The recipe as a function of the step, worked by hand."""

from __future__ import annotations

import itertools

import pytest

from pdnet.training.config import TrainConfig
from pdnet.training.schedule import Schedule, poly, warmup_poly


def test_one_image_iteration_before_every_two_video_iterations() -> None:
    schedule = Schedule(TrainConfig(epochs=2), video_batches=5)
    phases = "".join(schedule.step(index).phase[0] for index in range(schedule.steps))
    assert phases == "ivvivviv" * 2  # the pattern restarts with the epoch: its last image has one video only
    assert (schedule.image_batches, schedule.steps_per_epoch, schedule.steps) == (3, 8, 16)


def test_both_streams_go_on_from_epoch_to_epoch() -> None:
    schedule = Schedule(TrainConfig(epochs=2), video_batches=5)
    steps = [schedule.step(index) for index in range(schedule.steps)]
    assert [step.index for step in steps] == list(range(16))
    assert [step.epoch for step in steps] == [0] * 8 + [1] * 8
    assert [step.batch for step in steps if step.phase == "image"] == [0, 1, 2, 3, 4, 5]
    assert [step.batch for step in steps if step.phase == "video"] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("video_batches", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("per_image", [1, 2, 5])
def test_no_batch_is_left_out_or_given_twice(video_batches: int, per_image: int) -> None:
    schedule = Schedule(TrainConfig(epochs=3, video_steps_per_image=per_image), video_batches)
    steps = [schedule.step(index) for index in range(schedule.steps)]
    assert [step.batch for step in steps if step.phase == "video"] == list(range(3 * video_batches))
    assert [step.batch for step in steps if step.phase == "image"] == list(range(3 * schedule.image_batches))
    assert all(step.epoch == step.batch // video_batches for step in steps if step.phase == "video")
    assert schedule.steps == len(steps)


@pytest.mark.parametrize(
    ("index", "backbone", "rest"),
    [
        # (1 - index/16)^0.9, halved from epoch 1 (index 8) on, times the highest rate of the phase
        (0, 2.5e-4 * 1.0, 0.0),  # image
        (1, 2.5e-5 * 0.943570, 2.5e-3 * 0.943570),  # video, (15/16)^0.9
        (3, 2.5e-4 * 0.829547, 0.0),  # image, (13/16)^0.9
        (7, 2.5e-5 * 0.595813, 2.5e-3 * 0.595813),  # video, (9/16)^0.9
        (8, 2.5e-4 * 0.267943, 0.0),  # image, (8/16)^0.9 / 2
        (15, 2.5e-5 * 0.0412346, 2.5e-3 * 0.0412346),  # video, (1/16)^0.9 / 2
    ],
)
def test_rates_by_hand(index: int, backbone: float, rest: float) -> None:
    schedule = Schedule(TrainConfig(epochs=2, late_epoch=1), video_batches=5)
    rates = schedule.step(index).rates
    assert set(rates) == {"backbone", "rest"}
    assert rates["backbone"] == pytest.approx(backbone, rel=2e-6)
    assert rates["rest"] == pytest.approx(rest, rel=2e-6)


def test_late_factor_starts_at_epoch_six_and_only_there() -> None:
    late, never = (Schedule(TrainConfig(epochs=8, late_factor=factor), 2) for factor in (0.5, 1.0))
    for index in range(late.steps):
        epoch = index // 3
        ratio = late.step(index).rates["backbone"] / never.step(index).rates["backbone"]
        assert ratio == pytest.approx(0.5 if epoch >= 6 else 1.0)


def test_the_paper_in_numbers() -> None:
    """60 epochs, batches of 4; 1,000 frames are 250 video and 125 image iterations an epoch."""
    schedule = Schedule(TrainConfig(), video_batches=250)
    assert schedule.steps == 60 * 375
    assert schedule.step(0).rates == {"backbone": 2.5e-4, "rest": 0.0}
    last = schedule.step(schedule.steps - 1)
    assert (last.epoch, last.phase, last.batch) == (59, "video", 60 * 250 - 1)
    assert 0 < last.rates["rest"] < 1e-3 * 2.5e-3


def test_poly_falls_from_one_towards_zero() -> None:
    values = [poly(index, 100, 0.9) for index in range(100)]
    assert values[0] == 1
    assert all(a > b > 0 for a, b in itertools.pairwise(values))
    assert poly(50, 100, 1.0) == 0.5
    assert poly(50, 100, 0.0) == 1.0


def test_warmup_rises_in_a_line_then_falls() -> None:
    values = [warmup_poly(index, 40, 0.9, 0.1) for index in range(40)]
    assert values[:4] == [0.2, 0.4, 0.6, 0.8]  # 4 of 40 steps, towards the 1 of the fifth
    assert values[4:] == [poly(index, 36, 0.9) for index in range(36)]
    assert [warmup_poly(index, 5, 0.9, 0.0) for index in range(5)] == [poly(index, 5, 0.9) for index in range(5)]
    assert all(0 < warmup_poly(index, 3, 0.9, 1.0) < 1 for index in range(3))


@pytest.mark.parametrize(("video_batches", "video_steps_per_image"), [(5, 2), (3, 2), (4, 1), (1, 3)])
def test_batches_before_an_iteration_are_counted(video_batches: int, video_steps_per_image: int) -> None:
    schedule = Schedule(TrainConfig(epochs=3, video_steps_per_image=video_steps_per_image), video_batches)
    given = {"image": 0, "video": 0}
    for index in range(schedule.steps):
        assert schedule.batches_before(index) == given
        step = schedule.step(index)
        assert step.batch == given[step.phase]
        given[step.phase] += 1
    assert schedule.batches_before(schedule.steps) == given
