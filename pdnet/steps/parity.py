"""Whether an exported file still is the network that it was written from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pdnet.config import Config
from pdnet.data.io import read_image
from pdnet.errors import ExportError
from pdnet.evaluation.evaluate import clips_of, score_table
from pdnet.evaluation.scoring import summarise
from pdnet.export.config import Bounds
from pdnet.inference.session import Backend, Features, Output, PortraitSession, to_input
from pdnet.model import PDNet
from pdnet.model.streaming import ReferenceEncoder, Segmenter

#: Frames at once, as a stream and as a batch come.
BATCHES = (1, 3)
#: Reference frames of graphs that take any number of them.
REFERENCES = (1, 2)
#: A graph of any size is compared at its own and at one that is larger by this, which no stride divides.
OTHER_SIZE = 33

#: The figures of a comparison, in parity.json.
AGREEMENT = ("max_probability_difference", "mean_probability_difference", "mask_agreement")


class Case(NamedTuple):
    """A way in which a graph is run."""

    size: int
    batch: int
    references: int


def cases(backend: Backend, *, any_size: bool, references: Sequence[int]) -> list[Case]:
    """All the ways in which a graph is compared."""
    sizes = (backend.size, backend.size + OTHER_SIZE) if any_size else (backend.size,)
    return [Case(*case) for case in product(sizes, BATCHES, references)]


class Original:
    """The network as it was trained, unfolded, in float32: what files are compared with.

    Args:
        network: of any number of references; answers with what the caller gives.
        size: side S of its inputs.
    """

    name, raw = "network", False

    def __init__(self, network: PDNet, size: int) -> None:
        network = network.eval().to("cpu", torch.float32)
        self.size, self.references = size, network.config.references
        self._encoder, self._segmenter = ReferenceEncoder(network), Segmenter(network)

    def encode(self, image: Tensor) -> Features:
        """Key and value of reference frames (B, 3, S, S) float32."""
        with torch.inference_mode():
            key, value = self._encoder(image)
            return key, value

    def segment(self, image: Tensor, references: Sequence[Features]) -> Output:
        """Segment (B, 3, S, S) float32 against N references of a batch of 1."""
        with torch.inference_mode():
            key, value = (torch.cat(each, dim=1) for each in zip(*references, strict=True))
            return Output(self._segmenter(image, key, value)[0])


def compare(
    original: Backend, exported: Backend, frames: pd.DataFrame, *, count: int, cases: Iterable[Case], file: str
) -> list[dict[str, Any]]:
    """Probabilities of the original and of what was exported, on `count` frames spread over the validation clips.

    The references are the first frame of the clip and, where there is a second, the frame before the target.

    Returns:
        A row a case: file, size, batch, references, frames, and the figures of `AGREEMENT`.
    """
    chosen = spread([list(clip["image"]) for _, clip in clips_of(frames)], count)
    return [
        {"file": file, **case._asdict(), "frames": len(chosen)} | _agreement(original, exported, chosen, case)
        for case in cases
    ]


def spread(clips: Sequence[list[str]], count: int) -> list[tuple[list[str], int]]:
    """`count` frames spread over clips, or all that there are: each as its clip and the place in it."""
    places = [(clip, index) for clip in clips for index in range(len(clip))]
    return [places[i] for i in np.unique(np.linspace(0, len(places) - 1, count).round().astype(int))]


def _agreement(
    original: Backend, exported: Backend, chosen: Sequence[tuple[list[str], int]], case: Case
) -> dict[str, float]:
    figures = []
    for clip, index in chosen:
        targets = [clip[(index + n) % len(clip)] for n in range(case.batch)]
        references = [clip[0], clip[index - 1]][: case.references]
        wanted, found = (_probability(each, targets, references, case.size) for each in (original, exported))
        difference = (wanted - found).abs()
        agreement = ((wanted >= 0.5) == (found >= 0.5)).float().mean()
        figures.append((float(difference.max()), float(difference.mean()), float(agreement)))
    # NumPy's largest is NaN where one is, Python's may not be.
    largest, means, agreements = np.array(figures).T
    return dict(zip(AGREEMENT, map(float, (largest.max(), means.mean(), agreements.mean())), strict=True))


def _probability(backend: Backend, targets: Sequence[str], references: Sequence[str], size: int) -> Tensor:
    images, others = (
        [to_input(read_image(path), size, raw=backend.raw) for path in paths] for paths in (targets, references)
    )
    return backend.segment(torch.cat(images), [backend.encode(image) for image in others]).probability


def worst(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of the cases as those of one file."""
    largest, mean, agreement = ([row[name] for row in rows] for name in AGREEMENT)
    figures = map(float, (np.max(largest), np.max(mean), np.min(agreement)))
    return {"frames": rows[0]["frames"]} | dict(zip(AGREEMENT, figures, strict=True))


def score(exported: Backend, frames: pd.DataFrame, config: Config, *, label: str) -> float:
    """J&F of the validation clips, in 0..1, segmented by what was exported."""
    threshold = config.evaluation.threshold
    table = score_table(
        lambda reference: PortraitSession(exported, reference=reference), frames, threshold=threshold, label=label
    )
    return float(summarise(table, config.evaluation.protocol).dataset["jf_mean"])


def excess(rows: Sequence[dict[str, Any]], bounds: Bounds) -> list[str]:
    """Which figures of a comparison are out of bounds."""
    found = worst(rows)
    lines = [
        f"{name.replace('_', ' ')} {found[name]:.2g}, allowed {getattr(bounds, name):g}"
        for name in AGREEMENT[:2]
        if not found[name] <= getattr(bounds, name)
    ]
    if not found["mask_agreement"] >= bounds.min_mask_agreement:
        lines.append(f"mask agreement {found['mask_agreement']:.4f}, at least {bounds.min_mask_agreement:g}")
    return lines


def jf_excess(bounds: Bounds, *, ours: float, theirs: float) -> list[str]:
    """Whether J&F through a file, in 0..1, is too far from that of the network."""
    if abs(100 * (ours - theirs)) <= bounds.max_jf_difference:
        return []
    return [f"J&F {100 * theirs:.2f} instead of {100 * ours:.2f}, allowed {bounds.max_jf_difference:g} apart"]


def refusal(name: str, lines: Sequence[str], rows: Sequence[dict[str, Any]]) -> ExportError:
    """Why a file is refused, with the table of its comparison."""
    return ExportError(f"{name} is not the same model: {'; '.join(lines)}", format_table(rows))


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """A comparison for people."""
    table = pd.DataFrame(rows).drop(columns="frames")
    table.columns = ["file", "size", "batch", "references", "largest", "mean", "masks agree"]
    as_power, as_share = "{:.1e}".format, "{:.4%}".format
    return table.to_string(index=False, formatters={"largest": as_power, "mean": as_power, "masks agree": as_share})
