"""Scores of predicted masks under a protocol: any method's folder of masks, or a table of a model's frames."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image

from pdnet.data.io import BoolArray, UInt8Array, find_images, is_binary, read_levels
from pdnet.errors import ConfigError, DataError
from pdnet.evaluation.config import ScoringProtocol
from pdnet.metrics import RegionContour, frame_scores, mean_of_sequences, statistics
from pdnet.progress import track

#: columns of every figure, in the order of the paper's tables
FIGURES = ("jf_mean", "j_mean", "j_recall", "j_decay", "f_mean", "f_recall", "f_decay")

_VOID = 255


class Rule(NamedTuple):
    """What a protocol counts.

    Attributes:
        skip_ends: whether the first and the last annotated frame of a clip are left out.
        void: whether annotation value 255 is void, 1 to 254 being objects.
        text: the rule in words.
    """

    skip_ends: bool
    void: bool
    text: str


#: Paper silent: the protocol of the tables; `mvps` is that of the authors' released evaluation.
RULES: dict[str, Rule] = {
    "mvps": Rule(True, False, "first and last annotated frame of a clip left out, no void, mean over clips"),
    "davis2016": Rule(True, False, "first and last frame of a clip left out, no void, mean over sequences"),
    "davis2017": Rule(
        False, True, "all frames, annotation value 255 void, objects 1 to 254 joined to one per clip, mean over clips"
    ),
    "all-frames": Rule(False, False, "all frames, no void, mean over clips"),
}


@dataclass(frozen=True)
class Summary:
    """Figures of clips and of the data set under one protocol.

    Attributes:
        protocol: key of `RULES`.
        clips: a row a clip: clip, scenario (where the frames have one), frames (number scored), then `FIGURES`.
        dataset: `FIGURES`, each the plain mean over the rows of `clips`; J&F mean is the mean of the two means.
        left_out: clips of which the protocol scores no frame; they are in no figure.
    """

    protocol: ScoringProtocol
    clips: pd.DataFrame
    dataset: dict[str, float]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class ScoreTable:
    """Scores of a folder of predictions.

    Attributes:
        frames: a row an annotated frame: clip, frame (stem), j, f in [0, 1]; all frames, whatever the protocol.
        summary: under the chosen protocol.
        all_frames: the same scores with no frame left out.
        threshold: what the predictions were thresholded at; None for binary ones.
        notes: what the user should know, a sentence each.
    """

    frames: pd.DataFrame
    summary: Summary
    all_frames: Summary
    threshold: int | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, in full precision, as values that JSON has."""
        return {
            "protocol": self.summary.protocol,
            "rule": RULES[self.summary.protocol].text,
            "threshold": self.threshold,
            "dataset": self.summary.dataset,
            "dataset_all_frames": self.all_frames.dataset,
            "clips": self.summary.clips.to_dict("records"),
            "clips_all_frames": self.all_frames.clips.to_dict("records"),
            "left_out": list(self.summary.left_out),
            "notes": list(self.notes),
            "frames": self.frames.to_dict("records"),
        }


class _Pair(NamedTuple):
    """One annotated frame and its prediction."""

    clip: str
    frame: str
    prediction: Path
    annotation: Path


def score_folders(
    predictions: Path, annotations: Path, *, protocol: ScoringProtocol = "mvps", threshold: int | None = None
) -> ScoreTable:
    """Score predicted masks against annotations.

    A clip is a folder of PNG masks, at any depth below `annotations` or `annotations` itself. Its predictions lie
    in the same folder below `predictions` under the same stems. Every annotated frame needs a prediction, since the
    figure over all frames is always reported; predictions of other frames are ignored with a note.

    Annotations are grey with one non-zero value, or palette files whose non-zero indices are all portrait (DAVIS:
    the union of the objects). Under `davis2017`, 255 is void instead: left out of J, background for F.

    Args:
        predictions: folder of predicted masks.
        annotations: folder of annotated masks.
        protocol: key of `RULES`.
        threshold: 1..255: a predicted value of at least this is portrait. None: predictions must be binary, 0 and
            one other value that all of them share.

    Raises:
        ConfigError: the protocol or the threshold is none.
        DataError: a folder or prediction is missing, a file cannot be read, two sizes differ, a mask is not binary,
            or the protocol leaves no frame.
    """
    rule = _rule(protocol)
    if threshold is not None and not 1 <= threshold <= 255:
        raise ConfigError(f"threshold {threshold}: expected 1 to 255 (at 0 every pixel would be portrait)")
    pairs, notes = _find_pairs(Path(predictions), Path(annotations))
    rows: list[tuple[str, str, float, float]] = []
    peak = 0
    seen: dict[str, set[str]] = {}
    for pair in track(pairs, "score"):
        levels = read_levels(pair.prediction)
        prediction = levels >= threshold if threshold is not None else _binary(levels, pair.prediction, peak)
        annotation, void = _read_annotation(pair.annotation, rule)
        if prediction.shape != annotation.shape:
            found, expected = (f"{mask.shape[1]}x{mask.shape[0]}" for mask in (prediction, annotation))
            raise DataError(
                f"{pair.prediction}: the mask is {found}, expected {expected}, the size of {pair.annotation}"
            )
        peak = max(peak, int(levels.max()))
        rows.append((pair.clip, pair.frame, *frame_scores(prediction, annotation, void)))
        if void is not None:
            kinds = {"object"} if annotation.any() else {"void"} if void.any() else set()
            seen.setdefault(pair.clip, set()).update(kinds)
    if binary := [clip for clip, kinds in seen.items() if kinds == {"void"}]:
        raise DataError(f"{annotations}: clip {binary[0]} holds 255 and no object; under davis2017, 255 is void and "
                        "1 to 254 are objects: use another protocol for binary masks")  # fmt: skip
    if threshold is not None and 0 < peak < threshold:
        notes.append(f"no predicted value reaches the threshold {threshold}; the largest is {peak}")
    frames = pd.DataFrame(rows, columns=["clip", "frame", "j", "f"])
    return ScoreTable(frames, summarise(frames, protocol), summarise(frames, "all-frames"), threshold, tuple(notes))


def summarise(frames: pd.DataFrame, protocol: ScoringProtocol) -> Summary:
    """Clip and data set figures from the scores of all frames: the one place that knows what a protocol leaves out.

    Args:
        frames: a row a frame in order within its clip: clip, frame, j, f, and scenario if there is one.
        protocol: key of `RULES`.

    Returns:
        Figures over the clips that have a scored frame; a clip of one or two frames has none where the protocol
        leaves out the ends.

    Raises:
        ConfigError: the protocol is none.
        DataError: no clip has a scored frame.
    """
    rule = _rule(protocol)
    scored: list[RegionContour] = []
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for name, clip in frames.groupby("clip", sort=False):
        counted = clip.iloc[1:-1] if rule.skip_ends else clip
        if counted.empty:
            left_out.append(str(name))
            continue
        figures = RegionContour(statistics(counted["j"].to_numpy()), statistics(counted["f"].to_numpy()))
        scenario = {"scenario": clip["scenario"].iloc[0]} if "scenario" in clip else {}
        rows.append({"clip": name, **scenario, "frames": len(counted), **_figures(figures)})
        scored.append(figures)
    if not scored:
        shortest = "no clip has three frames" if left_out else "there are no frames"
        hint = "; protocol all-frames scores every frame" if left_out else ""
        raise DataError(f"protocol {protocol} scores no frame ({rule.text}): {shortest}{hint}")
    return Summary(protocol, pd.DataFrame(rows), _figures(mean_of_sequences(scored)), tuple(left_out))


def format_table(table: ScoreTable) -> str:
    """The table for a terminal: a line a clip, the data set, all frames beside it; in percent as in the paper."""
    summary, everything = table.summary, table.all_frames
    lines: list[tuple[str, int, Mapping[Any, Any]]]
    lines = [(str(row["clip"]), int(row["frames"]), row) for row in summary.clips.to_dict("records")]
    clips = f"{len(lines)} clip{'s' if len(lines) > 1 else ''}"
    totals = [(f"mean of {clips} ({summary.protocol})", int(summary.clips["frames"].sum()), summary.dataset)]
    if RULES[summary.protocol].skip_ends:
        totals.append(("with all frames", int(everything.clips["frames"].sum()), everything.dataset))
    width = max(len(name) for name, *_ in [*lines, *totals])
    header = [
        f"{'':{width}}             J&F      J                      F",
        f"{'clip':{width}}  frames    Mean   Mean  Recall  Decay   Mean  Recall  Decay",
    ]
    rule = "-" * len(header[1])
    text = [f"{name:{width}}  {count:6d} {_percent(figures)}" for name, count, figures in [*lines, *totals]]
    words = [f"protocol {summary.protocol}: {RULES[summary.protocol].text}; in percent"]
    if summary.left_out:
        words.append(f"not in any figure: {', '.join(summary.left_out)} (fewer than three frames)")
    words += table.notes
    return "\n".join([*header, rule, *text[: len(lines)], rule, *text[len(lines) :], "", *words])


def _percent(figures: Mapping[Any, Any]) -> str:
    widths = (6, 6, 7, 6, 6, 7, 6)
    # Adding 0.0 turns the -0.0 of a rounded small decay into 0.0.
    return " ".join(f"{round(100 * figures[key], 1) + 0.0:{w}.1f}" for key, w in zip(FIGURES, widths, strict=True))


def _figures(scores: RegionContour) -> dict[str, float]:
    return dict(zip(FIGURES, (scores.jf_mean, *scores.j, *scores.f), strict=True))


def _rule(protocol: str) -> Rule:
    if protocol not in RULES:
        raise ConfigError(f"protocol '{protocol}': expected one of {', '.join(RULES)}")
    return RULES[protocol]


def _binary(levels: UInt8Array, path: Path, value: int) -> BoolArray:
    """The portrait of a binary prediction; `value` is the non-zero value of those before, 0 if there was none."""
    peak = int(levels.max())
    advice = (
        "pass --threshold T to take values of at least T as portrait (128 for probabilities stored as 0..255, "
        "1 for anything not 0)"
    )
    if not is_binary(levels):
        raise DataError(f"{path}: not a binary mask, it holds several values from 1 to {peak}; {advice}")
    if peak and value and peak != value:
        raise DataError(f"{path}: its portrait value is {peak}, that of the predictions before it {value}; {advice}")
    return _non_zero(levels)


def _read_annotation(path: Path, rule: Rule) -> tuple[BoolArray, BoolArray | None]:
    """Foreground and void of an annotation; void is None where the protocol has none."""
    levels = read_levels(path)
    if rule.void:
        void = levels == _VOID
        return (levels != 0) & ~void, void
    if not is_binary(levels):
        with Image.open(path) as image:
            if image.mode != "P":
                raise DataError(f"{path}: not a binary mask, it holds several values from 1 to {levels.max()}; "
                                "expected 0 and one other, or a palette file of object ids")  # fmt: skip
    return _non_zero(levels), None


def _non_zero(levels: UInt8Array) -> BoolArray:
    portrait: BoolArray = levels != 0
    return portrait


def _find_pairs(predictions: Path, annotations: Path) -> tuple[list[_Pair], list[str]]:
    """Every annotated frame with its prediction, in order of clip and frame, and notes on what has no annotation."""
    clips = _clip_folders(annotations)
    if not predictions.is_dir():
        raise DataError(f"{predictions}: no such folder")
    if absent := [clip for clip in clips if not (predictions / clip).is_dir()]:
        raise DataError(f"{predictions}: {len(absent)} of {len(clips)} annotated clips have no folder of predictions, "
                        f"first: {absent[0]} (annotated in {annotations / absent[0]})")  # fmt: skip
    pairs: list[_Pair] = []
    missing: list[str] = []
    extra = 0
    for clip in clips:
        name = annotations.resolve().name if clip == "." else clip
        annotated = {stem: path for stem, path in find_images(annotations / clip).items() if _is_png(path.name)}
        predicted = find_images(predictions / clip)
        missing += [f"{name}/{stem}" for stem in annotated if stem not in predicted]
        extra += sum(stem not in annotated for stem in predicted)
        pairs += [_Pair(name, stem, predicted[stem], annotated[stem]) for stem in annotated if stem in predicted]
    if missing:
        total = len(missing) + len(pairs)
        raise DataError(f"{predictions}: {len(missing)} of {total} annotated frames have no prediction, "
                        f"first: {missing[0]}")  # fmt: skip
    return pairs, [f"predicted frames without an annotation, not scored: {extra}"] if extra else []


def _clip_folders(root: Path) -> list[str]:
    """Folders that hold PNG files, relative to `root` in order of name; `.` alone where `root` itself is the clip."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    found: list[str] = []
    for folder, below, names in os.walk(root, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        if any(_is_png(name) for name in names):
            found.append(Path(folder).relative_to(root).as_posix())
    if not found:
        raise DataError(f"{root}: no PNG masks in this folder or below it")
    if "." in found and len(found) > 1:
        raise DataError(f"{root}: PNG masks both in the folder itself and in folders below it, such as "
                        f"{sorted(found)[1]}; expected one clip or folders of clips")  # fmt: skip
    return sorted(found)


def _is_png(name: str) -> bool:
    return name.lower().endswith(".png") and not name.startswith(".")
