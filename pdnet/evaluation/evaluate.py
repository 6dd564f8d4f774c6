"""A model on the validation clips: masks, scores, parts and speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from pdnet.data.io import BoolArray, UInt8Array, read_image, read_levels, read_pair
from pdnet.errors import DataError
from pdnet.files import read_object
from pdnet.inference.session import Backend, PortraitSession, Prediction
from pdnet.metrics import frame_scores
from pdnet.progress import track


class Session(Protocol):
    """A clip that was opened with its first frame."""

    def step(self, frame: UInt8Array) -> Prediction:
        """Segment one frame, (H, W, 3) uint8 RGB."""


OpenClip = Callable[[UInt8Array], Session]


class Frame(NamedTuple):
    """One scored frame.

    Attributes:
        row: the frame's row of the index.
        mask: (H, W) bool, predicted.
        annotation: (H, W) bool, true.
        j, f: scores in 0..1.
        prediction: with the part maps.
    """

    row: Any
    mask: BoolArray
    annotation: BoolArray
    j: float
    f: float
    prediction: Prediction


def clips_of(frames: pd.DataFrame, split: str = "val") -> Iterator[tuple[str, pd.DataFrame]]:
    """The clips of a split in order, each with its frames.

    Raises:
        DataError: the split has no frames.
    """
    chosen = frames[frames["split"] == split]
    if chosen.empty:
        raise DataError(f"the data set has no clips in '{split}'; expected at least one in ImageSets/{split}.txt")
    for name in chosen["clip"].unique():
        yield str(name), chosen[chosen["clip"] == name]


def score_clips(
    open_clip: OpenClip, frames: pd.DataFrame, *, threshold: float, label: str = "evaluate"
) -> Iterator[Frame]:
    """Segment every frame of the validation clips, streaming; the first frame of a clip is its reference.

    Paper: 4.1 (reference), 5.3 (threshold).

    Args:
        open_clip: makes a session from a clip's first frame; any backend.
        frames: table of `pdnet.data.index.index_clips`.
        threshold: portrait where the probability is at least this.
        label: what the progress is called.

    Raises:
        DataError: a file cannot be read, or image and mask differ in size.
    """
    total = int((frames["split"] == "val").sum())
    yield from track(_score_clips(open_clip, frames, threshold), label, total)


def _score_clips(open_clip: OpenClip, frames: pd.DataFrame, threshold: float) -> Iterator[Frame]:
    for _, clip in clips_of(frames):
        session: Session | None = None
        for row in clip.itertuples(index=False):
            image, annotation = read_pair(str(row.image), str(row.mask))
            if session is None:
                session = open_clip(image)
            prediction = session.step(image)
            mask = prediction.probability >= threshold
            j, f = frame_scores(mask, annotation)
            yield Frame(row, mask, annotation, j, f, prediction)


def score_table(open_clip: OpenClip, frames: pd.DataFrame, *, threshold: float, label: str) -> pd.DataFrame:
    """`score_clips` as a table: clip, scenario, frame, j, f in 0..1, a row a frame."""
    scored = score_clips(open_clip, frames, threshold=threshold, label=label)
    return pd.DataFrame(
        [(f.row.clip, f.row.scenario, f.row.frame, f.j, f.f) for f in scored],
        columns=["clip", "scenario", "frame", "j", "f"],
    )


class TrueParts(NamedTuple):
    """The true body parts of a data set that knows them.

    Attributes:
        root: folder of label maps, `<clip>/<frame>.png`: 0 for background, k for the k-th name.
        names: of the parts.
    """

    root: Path
    names: tuple[str, ...]


def find_true_parts(videos: Path, resolution: str) -> TrueParts | None:
    """The true parts of a data set: `Parts/<resolution>/`, and `parts` in dataset.json, which names the labels from 0.

    Raises:
        DataError: dataset.json is damaged.
    """
    root, description = videos / "Parts" / resolution, videos / "dataset.json"
    if not root.is_dir() or not description.is_file():
        return None
    names = read_object(description).get("parts")
    return TrueParts(root, tuple(map(str, names[1:]))) if isinstance(names, list) and len(names) > 1 else None


class PartStatistics:
    """How the predicted parts share the portrait, and how they match the true body parts where those are known.

    Args:
        parts: number of predicted parts K.
        truth: the true parts; None where they are not known.
    """

    def __init__(self, parts: int, truth: TrueParts | None) -> None:
        self.area, self.pixels = np.zeros(parts), np.zeros(parts)
        self.truth = truth
        self.confusion = np.zeros((parts, len(truth.names) if truth else 0), np.int64)

    def add(self, frame: Frame) -> None:
        """Count one frame."""
        prediction = frame.prediction
        if prediction.part_prob is None or prediction.saliency is None:
            return
        part_mask = prediction.part_prob * prediction.saliency  # eq. (1)
        share = part_mask.sum(axis=(1, 2))
        if share.sum() > 0:
            self.area += share / share.sum()
        pixels = np.bincount(part_labels(frame, prediction.part_prob).ravel(), minlength=len(self.pixels) + 1)[1:]
        if pixels.sum() > 0:
            self.pixels += pixels / pixels.sum()
        if self.truth is None:
            return
        truth, names = read_levels(self.truth.root / frame.row.clip / f"{frame.row.frame}.png"), self.truth.names
        likeliest = resize_labels(prediction.part_prob.argmax(axis=0).astype(np.uint8), truth.shape)
        inside = frame.mask & (truth > 0) & (truth <= len(names))
        pairs = likeliest[inside].astype(np.int64) * len(names) + truth[inside] - 1
        self.confusion += np.bincount(pairs, minlength=self.confusion.size).reshape(self.confusion.shape)

    def summary(self) -> dict[str, Any] | None:
        """How the parts came out, mean over frames; None if nothing was counted.

        `share`: of each part in the saliency, R-hat = S D (eq. 1), sum 1. `pixels`: of the predicted portrait's pixels
        whose likeliest part it is, sum 1; near 0 for a part that is everywhere second. `match` with the true parts.
        """
        if self.area.sum() == 0:
            return None
        match = None
        if self.truth is not None and self.confusion.sum() > 0:
            rows = self.confusion / np.maximum(self.confusion.sum(axis=1, keepdims=True), 1)
            match = {
                "true_parts": list(self.truth.names),
                "confusion": rows.tolist(),
                "purity": float(self.confusion.max(axis=1).sum() / self.confusion.sum()),
                "nmi": normalised_mutual_information(self.confusion),
            }
        return {
            "share": (self.area / self.area.sum()).tolist(),
            "pixels": (self.pixels / max(self.pixels.sum(), 1e-12)).tolist(),
            "match": match,
        }


def normalised_mutual_information(counts: npt.NDArray[np.int64]) -> float:
    """Mutual information of two labellings over the mean of their entropies; 0 independent, 1 the same partition."""
    joint = counts / counts.sum()
    a, b = joint.sum(axis=1), joint.sum(axis=0)

    def entropy(p: npt.NDArray[np.float64]) -> float:
        return float(-(p[p > 0] * np.log(p[p > 0])).sum())

    mutual = entropy(a) + entropy(b) - entropy(joint.ravel())
    mean = (entropy(a) + entropy(b)) / 2
    return mutual / mean if mean > 0 else 1.0


def resize_labels(labels: UInt8Array, shape: tuple[int, ...]) -> UInt8Array:
    """Nearest-neighbour resize of a (h, w) label map to (H, W)."""
    return np.asarray(Image.fromarray(labels).resize((shape[1], shape[0]), Image.Resampling.NEAREST))


def part_labels(frame: Frame, part_prob: npt.NDArray[np.float32]) -> UInt8Array:
    """(h, w) uint8: k + 1 for the likeliest part k inside the predicted portrait, 0 outside."""
    likeliest = part_prob.argmax(axis=0).astype(np.uint8) + np.uint8(1)
    levels = Image.fromarray(frame.mask.astype(np.uint8) * np.uint8(255))
    inside = np.asarray(levels.resize(likeliest.shape[::-1], Image.Resampling.BOX)) > 0
    labels: UInt8Array = likeliest * inside.astype(np.uint8)
    return labels


def measure_speed(backend: Backend, frames: pd.DataFrame, *, count: int) -> dict[str, float]:
    """Frames a second, one frame at a time: the network alone (the paper's figure), and from file to mask.

    The median of `count` frames of the first validation clip, after a warm-up.
    """
    _, clip = next(clips_of(frames))
    paths = [clip["image"].iloc[i % len(clip)] for i in range(count)]
    session = PortraitSession(backend, reference=read_image(paths[0]))
    network_times, whole_times = [], []
    for index, path in enumerate([paths[0]] * 3 + paths):
        started = time.perf_counter()
        _ = session.step(read_image(path)).probability >= 0.5
        whole = time.perf_counter() - started
        image = session.to_input(read_image(path))
        started = time.perf_counter()
        session.infer(image)  # its answer is on the CPU: nothing is still to be waited for
        if index >= 3:
            network_times.append(time.perf_counter() - started)
            whole_times.append(whole)
    return {
        "network_fps": 1 / statistics.median(network_times),
        "end_to_end_fps": 1 / statistics.median(whole_times),
    }
