"""What the two training steps can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pdnet.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class PretrainConfig:
    """Pretraining of the encoder and its heads on single images.

    Paper: 5.1 starts from ImageNet weights and needs none of it; without such weights this step is where the
    encoder learns what a person looks like. Precision, workers, cache, photometric strength and the time between
    checkpoints are those of `TrainConfig`.

    Attributes:
        weights: backbone weights to start from: `imagenet`, `none`, or the path of a torchvision state dict.
        epochs: passes over the image set; 0 skips the step and hands on the initial weights.
        batch_size: images an iteration, shared by the processes that train together.
        size: side of the square that images are resized to; null is `data.size`.
        lr: highest learning rate of AdamW, reached after `warmup` of the steps, then poly.
        warmup: share of the steps with a linearly growing rate.
        weight_decay: decoupled, on every parameter.
        poly_power: exponent of the decay.
    """

    weights: str = "imagenet"
    epochs: int = 0
    batch_size: int = 16
    size: int | None = None
    lr: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 1e-2
    poly_power: float = 0.9

    def __post_init__(self) -> None:
        _at_least("pretrain", self, epochs=0, batch_size=1, lr=0, weight_decay=0, poly_power=0, size=32)
        if not 0 <= self.warmup <= 1:
            raise ConfigError(f"pretrain.warmup: {self.warmup}, expected 0 to 1")


@dataclass(frozen=True)
class TrainConfig:
    """The paper's recipe (5.1): image and video iterations in turn.

    Attributes:
        epochs: passes over the annotated training frames. Paper: 60.
        batch_size: target frames an iteration, each with its reference; the processes that train together share them.
            Paper: 4.
        image_batch_size: images an image iteration, shared likewise.
        size: side of the square that frames are resized to in training; null is `data.size`. Paper: 480 for both.
        video_steps_per_image: video iterations after each image iteration. Paper: 2.
        image_backbone_lr, image_rest_lr: highest rates of the two groups in image iterations. Paper: 2.5e-4, and
            the rest does not move (a rate of 0 freezes the group's parameters: no momentum, no weight decay; the
            statistics of its batch normalisation follow the images all the same).
        video_backbone_lr, video_rest_lr: the same in video iterations. Paper: 2.5e-5, 2.5e-3.
        optimizer: `sgd`, or `adamw`, which learns more from few steps without pretrained weights. Paper: sgd.
        momentum: of SGD. Paper: 0.9.
        weight_decay: added to the gradient by SGD, decoupled in AdamW. Paper: 5e-4.
        poly_power: rates fall with (1 - step/steps)^power. Paper silent: 0.9 (released).
        late_epoch, late_factor: from that epoch on (0-based) all rates are multiplied. Paper silent: 6, 0.5 (released).
        clip_grad_norm: bound on the gradient norm of each group; null for none. Paper silent: none (released).
        precision: `fp32`, `bf16` (autocast), or `auto`: bf16 where the device multiplies it in hardware.
        workers: loader processes; 0 loads in the training process.
        cache_mb: decoded images kept in memory, by each loader process.
        photometric: strength of random brightness, contrast and saturation (0 to 1). Paper silent: 0 (released).
        checkpoint_seconds: time from one checkpoint to the next, of pretraining too, where the step is given a folder
            for them; 0 writes one after every iteration.
    """

    epochs: int = 60
    batch_size: int = 4
    image_batch_size: int = 4
    size: int | None = None
    video_steps_per_image: int = 2
    image_backbone_lr: float = 2.5e-4
    image_rest_lr: float = 0.0
    video_backbone_lr: float = 2.5e-5
    video_rest_lr: float = 2.5e-3
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    poly_power: float = 0.9
    late_epoch: int = 6
    late_factor: float = 0.5
    clip_grad_norm: float | None = None
    precision: Precision = "auto"
    workers: int = 4
    cache_mb: int = 0
    photometric: float = 0.0
    checkpoint_seconds: float = 300.0

    def __post_init__(self) -> None:
        _at_least("train", self, epochs=1, batch_size=1, image_batch_size=1, size=32, video_steps_per_image=1)
        _at_least("train", self, image_backbone_lr=0, image_rest_lr=0, video_backbone_lr=0, video_rest_lr=0)
        _at_least("train", self, weight_decay=0, poly_power=0, late_epoch=0, late_factor=0, workers=0, cache_mb=0)
        _at_least("train", self, checkpoint_seconds=0)
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"train.momentum: {self.momentum}, expected 0 to below 1")
        if self.clip_grad_norm is not None and not self.clip_grad_norm > 0:
            raise ConfigError(f"train.clip_grad_norm: {self.clip_grad_norm}, expected more than 0, or null")
        if not 0 <= self.photometric <= 1:
            raise ConfigError(f"train.photometric: {self.photometric}, expected 0 to 1")


def check_divisible(config: PretrainConfig | TrainConfig, processes: int) -> None:
    """Check that each of several processes that train together gets the same share of every batch.

    Raises:
        ConfigError: names the key of a batch size that their number does not divide.
    """
    section = "pretrain" if isinstance(config, PretrainConfig) else "train"
    for name in ("batch_size", "image_batch_size"):
        size = getattr(config, name, 0)
        if size % processes:
            raise ConfigError(
                f"{section}.{name}: {size}, expected a multiple of the {processes} processes that share it"
            )


def _at_least(section: str, config: object, **bounds: int) -> None:
    for name, bound in bounds.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            raise ConfigError(f"{section}.{name}: {value}, expected at least {bound}")
