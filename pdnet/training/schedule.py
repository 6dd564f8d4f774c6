"""The recipe of section 5.1 as pure functions of the step: which phase, which batch, which rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pdnet.training.config import TrainConfig

Phase = Literal["image", "video"]


@dataclass(frozen=True)
class Step:
    """One iteration.

    Attributes:
        index: 0-based, over all phases.
        epoch: 0-based pass over the video frames.
        phase: which stream feeds it.
        batch: the stream's batch, counted from the start of training.
        rates: learning rate of each parameter group; 0 freezes the group.
    """

    index: int
    epoch: int
    phase: Phase
    batch: int
    rates: dict[str, float]


@dataclass(frozen=True)
class Schedule:
    """The paper's alternation: one image iteration before every `video_steps_per_image` video iterations.

    Phase, batch and rates follow from one counter, so they cannot drift apart and training resumes anywhere.
    The pattern restarts with each epoch; the image stream goes on where it was.

    Attributes:
        config: rates, epochs, pattern.
        video_batches: video iterations of an epoch.
    """

    config: TrainConfig
    video_batches: int

    @property
    def image_batches(self) -> int:
        """Image iterations of an epoch."""
        return -(-self.video_batches // self.config.video_steps_per_image)

    @property
    def steps_per_epoch(self) -> int:
        """Iterations of an epoch."""
        return self.video_batches + self.image_batches

    @property
    def steps(self) -> int:
        """Iterations of the whole training."""
        return self.config.epochs * self.steps_per_epoch

    def step(self, index: int) -> Step:
        """The iteration with this index."""
        epoch, position = divmod(index, self.steps_per_epoch)
        group, place = divmod(position, self.config.video_steps_per_image + 1)
        phase: Phase = "image" if place == 0 else "video"
        if phase == "image":
            batch = epoch * self.image_batches + group
        else:
            batch = epoch * self.video_batches + group * self.config.video_steps_per_image + place - 1
        return Step(index, epoch, phase, batch, self.rates(index, epoch, phase))

    def batches_before(self, index: int) -> dict[Phase, int]:
        """How many batches each stream gave before this iteration: where it goes on when training is resumed."""
        epoch, position = divmod(index, self.steps_per_epoch or 1)
        images = epoch * self.image_batches - (-position // (self.config.video_steps_per_image + 1))
        return {"image": images, "video": index - images}

    def rates(self, index: int, epoch: int, phase: Phase) -> dict[str, float]:
        """Learning rates of the groups `backbone` and `rest`.

        Paper: 5.1, the highest rates. Paper silent: poly decay over all iterations, halved from epoch 6 on (released).
        """
        config = self.config
        factor = poly(index, self.steps, config.poly_power)
        if epoch >= config.late_epoch:
            factor *= config.late_factor
        if phase == "image":
            return {"backbone": factor * config.image_backbone_lr, "rest": factor * config.image_rest_lr}
        return {"backbone": factor * config.video_backbone_lr, "rest": factor * config.video_rest_lr}


def poly(index: int, steps: int, power: float) -> float:
    """(1 - index/steps)^power: 1 at the first step, towards 0 at the last."""
    return float((1 - index / steps) ** power)


def warmup_poly(index: int, steps: int, power: float, warmup: float) -> float:
    """A linear rise over the first `warmup` share of the steps, then `poly` over the rest."""
    rising = round(warmup * steps)
    if index < rising:
        return (index + 1) / (rising + 1)
    return poly(index - rising, max(steps - rising, 1), power)
