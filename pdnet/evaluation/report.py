"""The report of a pipeline run: one self-contained page from what the steps left on disk.

read      _Run           every file of the steps, or one clear error
compute   _..._section   one function a section of the page: plain values, sentences, SVG, data URIs
render    report.html.j2
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from pdnet.data.index import index_clips
from pdnet.data.io import read_image, read_levels, read_mask, read_pair
from pdnet.data.tables import read_table
from pdnet.errors import DataError
from pdnet.evaluation.charts import Line, line_chart, smooth, thin
from pdnet.evaluation.scoring import FIGURES
from pdnet.files import read_object, write_text
from pdnet.overlays import (
    FALSE_NEGATIVE_COLOUR,
    FALSE_POSITIVE_COLOUR,
    HIT_COLOUR,
    Colour,
    data_uri,
    mistake_overlay,
    part_colours,
    part_overlay,
)
from pdnet.pages import page_template

#: a part that holds less than this share of the portrait is called degenerate
DEGENERATE_SHARE = 0.03
BEST_FRAMES, WORST_FRAMES, FRAMES_OF_A_CLIP = 4, 6, 2
PART_FRAMES = 4
#: clips whose part maps are shown; all of the paper's 40, evenly chosen ones of a larger set
PART_CLIPS = 40

NOTHING = "–"
J_COLOUR, F_COLOUR = "#2f6db5", "#d9822b"
VIDEO_COLOUR, IMAGE_COLOUR = "#2f6db5", "#d9822b"

_FRAME_COLUMNS = ("clip", "scenario", "frame", "position", "j", "f")
_CLIP_COLUMNS = ("clip", "scenario", "frames", *FIGURES)
_TERMS = {
    "final": "final output",
    "encoder_t": "encoder's four outputs",
    "saliency_t": "saliency",
    "geometric_t": "geometric concentration",
    "area_t": "area variance",
    "semantic_t": "semantic consistency",
    "orthonormal_t": "orthonormal basis",
}
_LIBRARIES = (
    "torch", "torchvision", "numpy", "pandas", "pillow", "onnx", "onnxruntime", "mlflow", "great-expectations",
)  # fmt: skip
_CHART_POINTS = 600


@dataclass(frozen=True)
class _Run:
    """What the steps left on disk, as read.

    Attributes:
        scores: evaluation/scores.json.
        frames: evaluation/frames.parquet with the paths `image` and `mask` (annotation) of each frame.
        clips: evaluation/clips.parquet.
        evaluation: the folder itself, for predicted masks and part maps.
        logs: the training logs by step.
        validation: validation/summary.json.
        parity: export/parity.json.
        runs: run.json by step.
        comparison: scores of the same recipe without IPDA, or None.
        config: the configuration as plain dicts.
        config_hash: its digest.
    """

    scores: dict[str, Any]
    frames: pd.DataFrame
    clips: pd.DataFrame
    evaluation: Path
    logs: dict[str, pd.DataFrame]
    validation: dict[str, Any]
    parity: dict[str, Any]
    runs: dict[str, dict[str, Any]]
    comparison: dict[str, Any] | None
    config: Mapping[str, Any]
    config_hash: str

    def setting(self, section: str, name: str) -> Any:
        """A value of the configuration, None where it has no such key."""
        return self.config.get(section, {}).get(name)


def write_report(
    *,
    videos: Path,
    validation: Path,
    pretrain: Path,
    train: Path,
    evaluation: Path,
    export: Path,
    out: Path,
    config: Mapping[str, Any],
    config_hash: str,
    resolution: str = "480p",
    comparison: Path | None = None,
) -> None:
    """Write `out/index.html`: scores, curves, frames and part maps in one file that needs no other and no network.

    The same inputs give the same bytes.

    Args:
        videos: the data set in the MVPS layout that was evaluated on.
        validation: folder of the validation step.
        pretrain: folder of the pretraining step.
        train: folder of the training step.
        evaluation: folder of the evaluation step.
        export: folder of the export step.
        out: folder that gets `index.html`.
        config: the configuration as plain dicts (`pdnet.config.to_mapping`).
        config_hash: its digest (`pdnet.config.config_hash`).
        resolution: the folder below `Keyframes/` and `Annotations/`.
        comparison: JSON with `label` and `scores` (as in scores.json) of the same recipe without IPDA on the same
            data; None where that was not measured.

    Raises:
        DataError: a file of a step is missing, damaged, or lacks what the page shows.
    """
    scores = read_object(evaluation / "scores.json", ("jf_mean", "all_frames.jf_mean", "baselines", "speed"))
    frames = read_table(evaluation / "frames.parquet", _FRAME_COLUMNS)
    folders = {"validate": validation, "pretrain": pretrain, "train": train, "evaluate": evaluation, "export": export}
    required = ("pretrain", "train", "evaluate")
    run = _Run(
        scores=scores,
        frames=_with_paths(frames, videos, resolution, evaluation / "frames.parquet"),
        clips=read_table(evaluation / "clips.parquet", _CLIP_COLUMNS),
        evaluation=evaluation,
        logs={
            "pretrain": read_table(pretrain / "log.parquet", ("step", "loss", "lr_encoder")),
            "train": read_table(train / "log.parquet", ("step", "phase", "loss", "lr_backbone", "lr_rest")),
        },
        validation=read_object(validation / "summary.json"),
        parity=read_object(export / "parity.json", ("torch.jf_mean", "onnx.jf_mean")),
        runs={
            step: read_object(folder / "run.json")
            for step, folder in folders.items()
            if step in required or (folder / "run.json").is_file()
        },
        comparison=read_object(comparison, ("label", "scores.jf_mean")) if comparison is not None else None,
        config=config,
        config_hash=config_hash,
    )
    write_text(out / "index.html", _page(run))


def _page(run: _Run) -> str:
    path = Path(__file__).with_name("report.html.j2")
    return page_template(path, percent=percent, number=number, thousands=thousands, hex=_hex).render(
        head=_head(run),
        table=_score_section(run),
        clips=_clip_section(run),
        curves=_time_section(run),
        frames=_frame_section(run),
        parts=_part_section(run),
        training=_training_section(run),
        data=_data_section(run),
        record=_record_section(run),
    )


# --- numbers as the page shows them


def percent(share: float | None, *, signed: bool = False) -> str:
    """A share of 1 as a percentage with one decimal, as the paper prints scores; an en dash where there is none."""
    return number(None if share is None else 100 * share, 1, signed=signed)


def number(value: float | None, decimals: int = 1, *, signed: bool = False) -> str:
    """A number with a true minus sign; an en dash for None, NaN and infinities."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{abs(value):.{decimals}f}"
    negative = value < 0 and float(text) != 0
    return ("−" if negative else "+" if signed else "") + text


def thousands(value: float | None) -> str:
    """A count with thousands set apart."""
    return NOTHING if value is None else f"{value:,.0f}"


def points_apart(a: float, b: float) -> float:
    """How many points `a` is above `b`, from the figures as printed, so that the page adds up."""
    return round(round(100 * a, 1) - round(100 * b, 1), 1)


def _duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def _date(text: str | None) -> str:
    try:
        return datetime.fromisoformat(text or "").strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return text or NOTHING


def _agreement(share: float | None) -> str:
    """A share of pixels, close to 1, rounded down: "all" is said of all alone."""
    if share is None or not math.isfinite(share):
        return NOTHING
    if share == 1:
        return "all"
    return f"{math.floor(1e6 * share) / 1e4:.4f} % of the"


def _small(value: float | None) -> str:
    """A number near 0 with two digits that count."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return np.format_float_positional(value, precision=2, fractional=False, trim="-")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _device(record: Mapping[str, Any]) -> str:
    """Device and precision."""
    return ", ".join(str(fact) for fact in (record.get("device"), record.get("precision")) if fact) or NOTHING


def _data(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a run.json says of one data set: path, md5, files, bytes; empty where it says nothing."""
    return (record.get("data") or {}).get(name) or {}


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


# --- reading


def _with_paths(frames: pd.DataFrame, videos: Path, resolution: str, source: Path) -> pd.DataFrame:
    if frames.empty:
        raise DataError(f"{source}: holds no frames, expected the scored validation frames")
    index = index_clips(videos, resolution=resolution, splits=("val",))[["clip", "frame", "image", "mask"]]
    joined = frames[list(_FRAME_COLUMNS)].merge(index, on=["clip", "frame"], how="left")
    if (absent := joined["image"].isna()).any():
        first = joined[absent].iloc[0]
        raise DataError(
            f"{source}: {absent.sum()} of {len(joined)} frames are not among the validation clips of {videos}, "
            f"first: {first['clip']}/{first['frame']}"
        )
    return joined


# --- sections


def _head(run: _Run) -> dict[str, Any]:
    scores, speed, record = run.scores, run.scores["speed"], run.runs["evaluate"]
    lead, verdict = _verdict(scores)
    commit = (record.get("git_commit") or "unknown")[:10] + (" with local changes" if record.get("git_dirty") else "")
    parts = _plural(run.setting("model", "parts") or 0, "part") if run.setting("model", "ipda") else "no parts"
    size = speed.get("size") or run.setting("data", "size")
    model = f"{run.setting('model', 'backbone')}, {parts}, {size} × {size} pixels"
    parts_found = scores.get("parts") or {"share": [], "pixels": []}
    shares = [*parts_found["share"], *parts_found["pixels"]]
    return {
        "model": _model_name(run),
        "data": Path(_data(record, "videos").get("path") or "").name or "validation clips",
        "facts": [model, f"commit {commit}", _date(record.get("started")), f"configuration {run.config_hash}"],
        "verdict": verdict,
        "lead": lead,
        "scores": _score_row("PDNet", scores, "model"),
        "device": _device(speed),
        "smallest_part": min(shares) if shares else None,
        "degenerate": DEGENERATE_SHARE,
        "clips": _plural(len(run.clips), "validation clip"),
        "frames": _plural(len(run.frames), "annotated frame"),
    }


def _model_name(run: _Run) -> str:
    return "PDNet" if run.setting("model", "ipda") else "PDNet without IPDA"


def _verdict(scores: Mapping[str, Any]) -> tuple[float | None, str]:
    """Points above the best trivial baseline (None without one), and the same as a sentence."""
    figure = f"J&F {percent(scores['jf_mean'])}"
    if not scores["baselines"]:
        return None, f"{figure}; no trivial baseline was measured."
    best = max(scores["baselines"], key=lambda baseline: baseline["jf_mean"])
    lead = points_apart(scores["jf_mean"], best["jf_mean"])
    rank = f"{number(abs(lead))} points {'above' if lead > 0 else 'below'}" if lead else "no better than"
    return lead, f"{figure}, {rank} the best trivial baseline ({best['method']}, {percent(best['jf_mean'])})."


def _score_section(run: _Run) -> dict[str, Any]:
    scores, parity = run.scores, run.parity
    name = _model_name(run)
    rows = [
        _score_row(name, scores, "model"),
        _score_row(f"{name}, all frames counted", scores["all_frames"], "variant"),
        _score_row(f"{name}, through ONNX Runtime", parity["onnx"], "variant"),
    ]
    if run.comparison:
        # Its speed was measured on another day: no figure to put beside this run's.
        rows.append(_score_row(run.comparison["label"], run.comparison["scores"] | {"speed": None}, "variant"))
    rows += [_score_row(baseline["method"], baseline, "baseline") for baseline in scores["baselines"]]
    return {
        "rows": rows,
        "protocol": scores.get("protocol") or NOTHING,
        "speed": {name: scores["speed"].get(name) for name in ("network_fps", "end_to_end_fps", "size")},
        "parity": parity,
        "agreement": _agreement(parity.get("mask_agreement")),
        "difference": _small(parity.get("max_probability_difference")),
        "onnx_gap": points_apart(parity["onnx"]["jf_mean"], parity["torch"]["jf_mean"]),
        "ipda": _ipda_sentence(run),
        "unmeasured": bool(run.setting("model", "ipda")) and run.comparison is None,
    }


def _score_row(name: str, scores: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """One row; figures that were not measured are None."""
    figures = [(scores.get(measure) or {}).get(figure) for measure in "jf" for figure in ("mean", "recall", "decay")]
    fps = (scores.get("speed") or {}).get("network_fps")
    return {"name": name, "kind": kind, "jf": scores["jf_mean"], "figures": figures, "fps": fps}


def _ipda_sentence(run: _Run) -> str:
    if not run.setting("model", "ipda"):
        return "This run is trained without IPDA (model.ipda: false)."
    if run.comparison is None:
        return "What IPDA adds was not measured in this run:"  # the page names the command
    without = run.comparison["scores"]["jf_mean"]
    gain = points_apart(run.scores["jf_mean"], without)
    with_text, without_text = percent(run.scores["jf_mean"]), percent(without)
    if gain > 0:
        return f"IPDA scores higher: J&F {with_text} with it, {without_text} without, {number(gain)} points more."
    if gain < 0:
        return (
            f"IPDA does not score higher here: J&F {with_text} with it, {without_text} without, "
            f"{number(-gain)} points less."
        )
    return f"IPDA does not score higher here: J&F is {with_text} with it and without it."


def _clip_section(run: _Run) -> dict[str, Any]:
    clips = run.clips
    groups = clips.groupby("scenario", sort=False)
    scenarios = groups[["jf_mean", "j_mean", "f_mean"]].mean().assign(clips=groups.size()).reset_index()
    return {
        "rows": [
            {
                "clip": str(row["clip"]).split("/")[-1],
                "scenario": _words(str(row["scenario"])),
                "frames": int(row["frames"]),
                "jf": float(row["jf_mean"]),
                "figures": [float(row[name]) for name in FIGURES[1:]],
            }
            for row in clips.to_dict("records")
        ],
        "scenarios": [
            {
                "name": _words(str(row["scenario"])),
                "clips": int(row["clips"]),
                "jf": float(row["jf_mean"]),
                "j": float(row["j_mean"]),
                "f": float(row["f_mean"]),
            }
            for row in scenarios.to_dict("records")
        ],
    }


def _time_section(run: _Run) -> dict[str, Any]:
    fps = float(run.setting("validation", "fps") or 30)
    numbered = bool(run.frames["frame"].str.fullmatch(r"\d+").all())
    scores = run.frames[["j", "f"]].to_numpy(dtype=np.float64)
    least = float(np.nanmin(scores)) if np.isfinite(scores).any() else 0.0
    low = min(80, max(0, math.floor(10 * least) * 10))
    figures = dict(zip(run.clips["clip"], run.clips["jf_mean"], strict=True))
    charts = []
    for clip, frames in run.frames.groupby("clip", sort=False):
        stems = frames["frame"].tolist()
        x = (
            [(int(stem) - int(stems[0])) / fps for stem in stems]
            if numbered
            else [float(position) for position in frames["position"]]
        )
        j, f = 100 * frames["j"].to_numpy(np.float64), 100 * frames["f"].to_numpy(np.float64)
        hover = [
            (at, f"frame {stem}{f' ({at:.1f} s)' if numbered else ''}: J {number(one)}, F {number(other)}")
            for at, stem, one, other in zip(x, stems, j, f, strict=True)
        ]
        svg = line_chart(
            [Line(x, j, J_COLOUR), Line(x, f, F_COLOUR)],
            title=f"J and F of {clip} over time",
            x_label="seconds" if numbered else "annotated frame",
            y_range=(low, 100),
            hover=hover,
            height=150,
        )
        charts.append({"clip": str(clip).split("/")[-1], "jf": figures.get(clip), "svg": svg})
    return {"charts": charts, "legend": [("J", J_COLOUR), ("F", F_COLOUR)], "fps": fps if numbered else None}


def _frame_section(run: _Run) -> dict[str, Any]:
    frames = run.frames.assign(jf=(run.frames["j"] + run.frames["f"]) / 2).dropna(subset=["jf"])
    ranked = frames.sort_values("jf", kind="stable")
    worst = _pick(ranked, WORST_FRAMES)
    rest = ranked.drop(worst.index).iloc[::-1]
    return {
        "worst": [_shown_frame(run, row) for row in worst.to_dict("records")],
        "best": [_shown_frame(run, row) for row in _pick(rest, BEST_FRAMES).to_dict("records")],
        "hit": HIT_COLOUR,
        "false_positive": FALSE_POSITIVE_COLOUR,
        "false_negative": FALSE_NEGATIVE_COLOUR,
    }


def _pick(ranked: pd.DataFrame, count: int) -> pd.DataFrame:
    """The first `count` frames, at most two of a clip."""
    return ranked[ranked.groupby("clip").cumcount() < FRAMES_OF_A_CLIP].head(count)


def _shown_frame(run: _Run, row: Mapping[Any, Any]) -> dict[str, Any]:
    image, annotation = read_pair(row["image"], row["mask"])
    path = run.evaluation / "masks" / row["clip"] / f"{row['frame']}.png"
    prediction = read_mask(path)
    try:
        overlay = mistake_overlay(image, prediction, annotation)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return {
        "uri": data_uri(overlay, box=(420, 420)),
        "clip": row["clip"].split("/")[-1],
        "frame": row["frame"],
        "j": float(row["j"]),
        "f": float(row["f"]),
    }


def _part_section(run: _Run) -> dict[str, Any] | None:
    """None without IPDA: there are no parts then."""
    parts = run.scores.get("parts")
    if not run.setting("model", "ipda") or not parts:
        return None
    shares, pixels = ([float(share) for share in parts[key]] for key in ("share", "pixels"))
    least = [min(pair) for pair in zip(shares, pixels, strict=True)]
    colours = part_colours(len(shares))
    clips = [(str(clip), frames) for clip, frames in run.frames.groupby("clip", sort=False)]
    shown = [clips[index] for index in _spread(len(clips), PART_CLIPS)]
    degenerate = [f"part {index}" for index, share in enumerate(least, 1) if share < DEGENERATE_SHARE]
    limit = f"{100 * DEGENERATE_SHARE:.0f} %"
    return {
        "rows": [
            {"clip": clip.split("/")[-1], "frames": _part_frames(run, frames, len(shares))} for clip, frames in shown
        ],
        "left_out": len(clips) - len(shown),
        "shares": [
            {"part": index, "colour": colour, "share": share, "pixels": hard, "degenerate": low < DEGENERATE_SHARE}
            for index, (share, hard, low, colour) in enumerate(zip(shares, pixels, least, colours, strict=True), 1)
        ],
        "largest": max(shares),
        "verdict": (
            f"{_listed(degenerate).capitalize()} {'is' if len(degenerate) == 1 else 'are'} degenerate: "
            f"below {limit} of the portrait."
            if degenerate
            else f"No part is degenerate: each holds at least {limit} of the portrait."
        ),
        "good": not degenerate,
        "match": _match(parts["match"], pixels, colours) if parts.get("match") else None,
    }


def _part_frames(run: _Run, frames: pd.DataFrame, parts: int) -> list[dict[str, Any]]:
    shown = []
    for index in _spread(len(frames), PART_FRAMES):
        row = frames.iloc[index]
        name = Path(row["clip"], f"{row['frame']}.png")
        image, prediction = read_image(row["image"]), read_mask(run.evaluation / "masks" / name)
        labels = read_levels(run.evaluation / "parts" / name)
        try:
            overlay = part_overlay(image, labels, prediction, parts=parts)
        except DataError as error:
            raise DataError(f"{run.evaluation}: {name}: {error}") from None
        uri = data_uri(overlay, box=(300, 260), quality=80)
        shown.append({"uri": uri, "frame": row["frame"], "reference": index == 0})
    return shown


def _spread(length: int, count: int) -> list[int]:
    """Up to `count` indices from the first to the last, evenly apart."""
    return sorted({round(index) for index in np.linspace(0, length - 1, min(count, length))})


def _match(match: Mapping[str, Any], shares: Sequence[float], colours: Sequence[Colour]) -> dict[str, Any]:
    """The confusion of predicted with true parts, and what it says in words."""
    names = list(match["true_parts"])
    confusion = np.asarray(match["confusion"], dtype=np.float64)
    if confusion.shape != (len(shares), len(names)):
        raise DataError(f"the confusion of parts has shape {confusion.shape}, expected {(len(shares), len(names))}")
    marginal = np.asarray(shares) @ confusion  # near enough: shares are means over frames, the confusion is not
    commonest = int(marginal.argmax())
    return {
        "true_parts": names,
        "rows": [
            {
                "part": index,
                "colour": colour,
                "cells": [{"share": float(share), "largest": share == row.max() > 0} for share in row],
            }
            for index, (row, colour) in enumerate(zip(confusion, colours, strict=True), 1)
        ],
        "purity": match["purity"],
        "nmi": match["nmi"],
        "commonest": names[commonest],
        "commonest_share": float(marginal[commonest]),
    }


def _training_section(run: _Run) -> dict[str, Any]:
    pretrain, log = run.logs["pretrain"], run.logs["train"]
    video, image = log[log["phase"] == "video"], log[log["phase"] == "image"]
    loss = [
        _loss_chart(f"Loss, {phase} iterations", rows, "loss", colour)
        for phase, rows, colour in (("video", video, VIDEO_COLOUR), ("image", image, IMAGE_COLOUR))
        if len(rows)
    ]
    if len(pretrain):
        loss.append(_loss_chart("Loss, pretraining of the encoder", pretrain, "loss", J_COLOUR))
    return {
        "loss": loss,
        "terms": [
            _loss_chart(title, video, name, VIDEO_COLOUR, small=True)
            for name, title in _TERMS.items()
            if name in video.columns and video[name].notna().any()
        ],
        "rates": _rate_charts(video, image, pretrain),
        "facts": _training_facts(log, pretrain),
    }


def _loss_chart(title: str, rows: pd.DataFrame, column: str, colour: str, *, small: bool = False) -> dict[str, str]:
    known = rows[["step", column]].dropna()
    values = known[column].to_numpy(np.float64)
    curve = smooth(values, max(5, len(values) // 20))
    top = float(max(curve.max(), np.quantile(values, 0.98))) if len(values) else 1.0
    low = float(min(0.0, curve.min())) if len(values) else 0.0
    steps, raw = thin(known["step"], _CHART_POINTS), thin(values, _CHART_POINTS)
    svg = line_chart(
        [Line(steps, raw, colour, faint=True), Line(steps, thin(curve, _CHART_POINTS), colour)],
        title=title,
        x_label="" if small else "iteration",
        y_range=(low, 1.05 * top if top > low else low + 1),
        width=260 if small else 400,
        height=130 if small else 200,
    )
    return {"title": title, "svg": svg}


def _rate_charts(video: pd.DataFrame, image: pd.DataFrame, pretrain: pd.DataFrame) -> list[dict[str, Any]]:
    lines, legend, frozen = [], [], []
    colours = {
        ("video", "backbone"): "#7fb0e6",
        ("video", "rest"): VIDEO_COLOUR,
        ("image", "backbone"): IMAGE_COLOUR,
        ("image", "rest"): "#8a5a12",
    }
    for phase, rows in (("video", video), ("image", image)):
        for group in ("backbone", "rest"):
            name, rates = f"{group}, {phase} iterations", rows[f"lr_{group}"].to_numpy(np.float64)
            if (rates > 0).any():
                lines.append(Line(thin(rows["step"], _CHART_POINTS), thin(rates, _CHART_POINTS), colours[phase, group]))
                legend.append((name, colours[phase, group]))
            elif len(rows):
                frozen.append(name)
    note = f"0 throughout: {', '.join(frozen)}." if frozen else ""
    charts = [_rate_chart("Video and image iterations", lines, legend, note)]
    if len(pretrain):
        rates = thin(pretrain["lr_encoder"], _CHART_POINTS)
        line = Line(thin(pretrain["step"], _CHART_POINTS), rates, J_COLOUR)
        charts.append(_rate_chart("Pretraining of the encoder", [line], [], ""))
    return charts


def _rate_chart(title: str, lines: Sequence[Line], legend: Sequence[tuple[str, str]], note: str) -> dict[str, Any]:
    svg = line_chart(
        lines, title=f"Learning rate, {title.lower()}", x_label="iteration", log=True, width=400, height=200
    )
    return {"title": title, "svg": svg, "legend": legend, "note": note}


def _training_facts(log: pd.DataFrame, pretrain: pd.DataFrame) -> list[str]:
    """Sentences: how long, how many iterations, how long it waited for data."""
    kinds = log["phase"].value_counts()
    made = _listed([f"{kinds[phase]:,} {phase}" for phase in ("video", "image") if phase in kinds] or ["none"])
    facts = [f"Training: {_plural(len(log), 'iteration')} ({made})"]
    if len(log) and "seconds" in log.columns:
        seconds = float(log["seconds"].iloc[-1])
        facts[0] += f" in {_duration(seconds)}"
        if "data_seconds" in log.columns and seconds > 0:
            facts[0] += f", {percent(float(log['data_seconds'].sum()) / seconds)} % of it waiting for data"
    if not len(pretrain):
        return [*facts, "No pretraining in this run"]
    facts.append(f"Pretraining: {_plural(len(pretrain), 'iteration')}")
    if "seconds" in pretrain.columns:
        facts[1] += f" in {_duration(float(pretrain['seconds'].iloc[-1]))}"
    return facts


def _data_section(run: _Run) -> dict[str, Any]:
    summary, record = run.validation, run.runs["evaluate"]
    rules = summary.get("rules") or []
    kept = sum(bool(rule.get("passed")) for rule in rules)
    success = summary.get("success")
    stated = f"{kept} of {len(rules)} rules hold" if rules else "its rules are not listed"
    trained_on = _data(run.runs["train"], "videos").get("md5")
    evaluated_on = _data(record, "videos").get("md5")
    return {
        "verdict": f"{'Valid' if success else 'Not valid' if success is False else 'Validated'}: {stated}.",
        "splits": list((summary.get("splits") or {}).items()),
        "stills": summary.get("stills"),
        "sources": [(name, _data(record, name)) for name in record.get("data") or {}],
        "data_dvc": record.get("data_dvc"),
        "mismatch": (
            f"Trained on other data than evaluated: md5 {trained_on} and {evaluated_on}."
            if trained_on and evaluated_on and trained_on != evaluated_on
            else ""
        ),
    }


def _record_section(run: _Run) -> dict[str, Any]:
    rows = [
        {
            "step": record.get("step") or step,
            "started": _date(record.get("started")),
            "duration": _duration(record.get("seconds")),
            "device": _device(record),
            "commit": (record.get("git_commit") or NOTHING)[:10] + (" *" if record.get("git_dirty") else ""),
            "config_hash": record.get("config_hash") or NOTHING,
            "image": record.get("image") or NOTHING,
        }
        for step, record in run.runs.items()
    ]
    return {
        "config": yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True),
        "config_hash": run.config_hash,
        "steps": rows,
        "dirty": any(record.get("git_dirty") for record in run.runs.values()),
        "raw": yaml.safe_dump(
            {step: record | {"parents": list(record.get("parents") or {})} for step, record in run.runs.items()},
            sort_keys=False,
            allow_unicode=True,
        ),
        "versions": _versions(run),
    }


def _versions(run: _Run) -> list[tuple[str, str]]:
    """The package's as the runs noted it, the others as installed where the page is written."""
    found = [("pdnet", str(run.runs["evaluate"].get("pdnet") or NOTHING)), ("Python", platform.python_version())]
    for name in _LIBRARIES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
