"""What methods without a model score: the floor that a trained network has to leave well behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from pdnet.data.io import BoolArray, UInt8Array, read_mask, read_pair
from pdnet.errors import DataError
from pdnet.evaluation.config import ScoringProtocol
from pdnet.evaluation.scoring import FIGURES, summarise
from pdnet.metrics import frame_scores
from pdnet.progress import track

#: Pillow mode and band of every channel tried
CHANNELS: dict[str, tuple[str, int]] = {
    "R": ("RGB", 0),
    "G": ("RGB", 1),
    "B": ("RGB", 2),
    "H": ("HSV", 0),
    "S": ("HSV", 1),
    "V": ("HSV", 2),
    "luma": ("L", 0),
}

_MEAN_SIDES = (160, 90)  # long and short side of the mean masks, pixels
_THRESHOLD_FRAMES = 60  # training frames that the threshold is chosen on, evenly spaced
_THRESHOLD_STRIDE = 4  # every fourth pixel of every fourth row

FloatArray = npt.NDArray[np.float64]
Predict = Callable[[UInt8Array, BoolArray], BoolArray]


class ChannelThreshold(NamedTuple):
    """A rule on one channel: portrait where value >= level, or where value < level.

    Attributes:
        channel: key of `CHANNELS`.
        level: 0..256.
        above: whether portrait is at or above `level`.
        j: mean J on the training frames it was chosen on.
    """

    channel: str
    level: int
    above: bool
    j: float

    def __call__(self, image: UInt8Array) -> BoolArray:
        """(H, W, 3) uint8 RGB to (H, W) bool."""
        values = _channel(Image.fromarray(image), self.channel)
        portrait: BoolArray = values >= self.level if self.above else values < self.level
        return portrait

    def __str__(self) -> str:
        return f"{self.channel} {'>=' if self.above else '<'} {self.level}"


def trivial_baselines(frames: pd.DataFrame, *, protocol: ScoringProtocol = "mvps") -> pd.DataFrame:
    """Score trivial methods on the validation clips.

    - all foreground: every pixel is portrait;
    - mean training mask: where at least half of the training masks of the frame's orientation are portrait;
    - first mask carried forward: the clip's first annotated mask on every frame;
    - best threshold: the one rule on one channel with the highest mean J on training frames.

    Args:
        frames: table of `pdnet.data.index.index_clips`. Without training rows the two methods that learn from them
            are left out.
        protocol: which frames count, as in `summarise`.

    Returns:
        A row a method: method, then the figures of `pdnet.evaluation.scoring.FIGURES` in 0..1.

    Raises:
        DataError: there are no validation rows, a file cannot be read, or image and mask differ in size.
    """
    train, val = (frames[frames["split"] == split] for split in ("train", "val"))
    if val.empty:
        raise DataError("the data set has no clips in 'val': nothing to score baselines on")
    methods: dict[str, Predict] = {"all foreground": lambda _, first: np.ones_like(first)}
    if not train.empty:
        methods["mean training mask"] = mean_mask(train)
    methods["first mask carried forward"] = lambda _, first: first
    if not train.empty:
        threshold = best_threshold(train)
        methods[f"best threshold ({threshold})"] = lambda image, _: threshold(image)
    scores: dict[str, list[tuple[str, str, float, float]]] = {method: [] for method in methods}
    for row, image, annotation, first in track(_frames_with_first_mask(val), "baselines", len(val)):
        for method, predict in methods.items():
            scores[method].append((row.clip, row.frame, *frame_scores(predict(image, first), annotation)))
    tables = {method: pd.DataFrame(rows, columns=["clip", "frame", "j", "f"]) for method, rows in scores.items()}
    return pd.DataFrame(
        [{"method": method, **summarise(table, protocol).dataset} for method, table in tables.items()],
        columns=["method", *FIGURES],
    )


def mean_mask(train: pd.DataFrame) -> Predict:
    """The mean of the training masks, apart for landscape and portrait frames; a square frame counts as landscape.

    Each mask is averaged down to a common size. The mean is brought to the size of the frame and cut at one half. An
    orientation without training frames takes the mean of the other.
    """
    sums: dict[bool, FloatArray] = {}
    counts: dict[bool, int] = {}
    for path in train["mask"]:
        mask = read_mask(path)
        landscape = mask.shape[1] >= mask.shape[0]
        levels = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
        small = np.asarray(levels.resize(_mean_size(landscape), Image.Resampling.BOX), dtype=np.float64) / 255
        sums[landscape] = sums.get(landscape, 0.0) + small
        counts[landscape] = counts.get(landscape, 0) + 1
    means = {landscape: total / counts[landscape] for landscape, total in sums.items()}

    def predict(_: UInt8Array, first: BoolArray) -> BoolArray:
        landscape = first.shape[1] >= first.shape[0]
        mean = means[landscape if landscape in means else not landscape].astype(np.float32)
        height, width = first.shape
        portrait: BoolArray = (
            np.asarray(Image.fromarray(mean).resize((width, height), Image.Resampling.BILINEAR)) >= 0.5
        )
        return portrait

    return predict


def best_threshold(train: pd.DataFrame) -> ChannelThreshold:
    """The channel, level and direction with the highest mean J over evenly spaced training frames."""
    chosen = np.unique(np.linspace(0, len(train) - 1, min(len(train), _THRESHOLD_FRAMES)).round().astype(int))
    j: dict[tuple[str, bool], list[FloatArray]] = {(name, above): [] for name in CHANNELS for above in (True, False)}
    rows: Iterator[Any] = train.iloc[chosen].itertuples()
    for row in rows:
        image, mask = read_pair(row.image, row.mask)
        image, mask = image[::_THRESHOLD_STRIDE, ::_THRESHOLD_STRIDE], mask[::_THRESHOLD_STRIDE, ::_THRESHOLD_STRIDE]
        picture = Image.fromarray(np.ascontiguousarray(image))
        for name in CHANNELS:
            values = _channel(picture, name)
            portrait, rest = (np.bincount(values[part], minlength=256) for part in (mask, ~mask))
            for above in (True, False):
                j[name, above].append(_j_of_levels(portrait, rest, above=above))
    means = {rule: np.mean(curves, axis=0) for rule, curves in j.items()}
    channel, above = max(means, key=lambda rule: means[rule].max())
    level = int(means[channel, above].argmax())
    return ChannelThreshold(channel, level, above, float(means[channel, above][level]))


def _j_of_levels(portrait: npt.NDArray[np.int64], rest: npt.NDArray[np.int64], *, above: bool) -> FloatArray:
    """J of each level 0..256 from the histograms of a channel inside and outside the portrait."""
    below_level = [np.concatenate(([0], np.cumsum(histogram))) for histogram in (portrait, rest)]
    inside, outside = (cumulated[-1] - cumulated if above else cumulated for cumulated in below_level)
    union = portrait.sum() + outside
    return np.where(union > 0, inside / np.maximum(union, 1), 1.0)


def _channel(picture: Image.Image, name: str) -> UInt8Array:
    """(H, W) uint8 values of a channel."""
    mode, band = CHANNELS[name]
    return np.asarray(picture.convert(mode).getchannel(band))


def _mean_size(landscape: bool) -> tuple[int, int]:
    return _MEAN_SIDES if landscape else _MEAN_SIDES[::-1]


def _frames_with_first_mask(val: pd.DataFrame) -> Iterator[tuple[Any, UInt8Array, BoolArray, BoolArray]]:
    """Row, image and mask of each frame, and the first mask of its clip."""
    for _, clip in val.groupby("clip", sort=False):
        first: BoolArray | None = None
        rows: Iterator[Any] = clip.itertuples()
        for row in rows:
            image, mask = read_pair(row.image, row.mask)
            first = mask if first is None else first
            if first.shape != mask.shape:
                found, expected = (f"{x.shape[1]}x{x.shape[0]}" for x in (mask, first))
                raise DataError(f"{row.mask}: the mask is {found}, expected {expected}, the size of the clip's first")
            yield row, image, mask, first
