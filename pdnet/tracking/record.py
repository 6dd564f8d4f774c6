"""What is recorded of a pipeline run: its release and the folders of its steps as parameters, figures, curves, tags.

Nothing here knows MLflow's API; its limits on names and values are kept, so that a store never refuses the record.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pdnet.data.tables import read_table
from pdnet.errors import DataError
from pdnet.files import read_object
from pdnet.tracking.curves import curve_name
from pdnet.tracking.release import Release

#: Longest value of a parameter.
MAX_PARAM = 6000
#: Longest digest of a data set; DVC's of a folder, `<md5>.dir`, just fits.
MAX_DIGEST = 36
#: What a version of the registered model says of its origin; the run says all.
_VERSION_FACTS = (
    *("fps.device", "fps.precision", "data.videos.md5", "data.images.md5", "git.commit", "config.hash", "image"),
    *("onnx.sha256", "weights.sha256", "tensorrt.sha256", "release.sha256"),
)
#: How closely the ONNX file agrees with the network, in parity.json.
_AGREEMENT = ("max_probability_difference", "mean_probability_difference", "mask_agreement")
#: The steps that keep a log, and the columns that it has at least.
_LOGS = {"pretrain": ("step", "phase", "loss", "lr_encoder", "seconds"), "train": ("step", "phase", "loss", "seconds")}
#: A curve with more points is thinned; a chart is not wider than this.
MAX_POINTS = 2000


class Point(NamedTuple):
    """One value of a curve."""

    name: str
    step: int
    value: float
    time_ms: int


class Dataset(NamedTuple):
    """Data that went into the model; the digest says which version."""

    name: str
    digest: str
    path: str
    facts: dict[str, Any]
    use: str  #: `training`, `evaluation` or both


@dataclass(frozen=True)
class StepRecord:
    """What one step of the pipeline records in a run of its own.

    Attributes:
        step: its name.
        started_ms: when it began, in milliseconds of the epoch.
        ended_ms: when it ended.
        tags: code, image, host, device.
        metrics: the figures that it found.
        curves: losses, their terms and learning rates, a point a step of training.
        record: its run.json.
        live_run: the MLflow run that it wrote into while it ran; None where it did not.
        training: identifies the training that was recorded while it ran; None of other steps.
    """

    step: str
    started_ms: int
    ended_ms: int
    tags: dict[str, str]
    metrics: dict[str, float]
    curves: tuple[Point, ...]
    record: Path
    live_run: str | None
    training: str | None


@dataclass(frozen=True)
class Record:
    """Everything that the run of a model records.

    Attributes:
        params: the configuration by dotted key, and what the speed was measured on.
        tags: lineage: data, code, image, devices, digests.
        datasets: the data of training and evaluation.
        metrics: the figures of the finished model; scores in 0..1.
        steps: the steps of the pipeline, in order.
        version_tags: the few facts that a person compares versions by.
        clips: the table of the scored clips.
    """

    params: dict[str, str]
    tags: dict[str, str]
    datasets: tuple[Dataset, ...]
    metrics: dict[str, float]
    steps: tuple[StepRecord, ...]
    version_tags: dict[str, str]
    clips: pd.DataFrame


def read_record(release: Release, folders: Mapping[str, Path]) -> Record:
    """Read what is to be recorded.

    Args:
        release: of the run.
        folders: of the steps by name, in order; `pretrain` and `train` among them.

    Raises:
        DataError: a file that a step writes is missing or is not what the step writes.
    """
    runs = {step: read_object(folder / "run.json", ("started",)) for step, folder in folders.items()}
    evaluation = folders["evaluate"]  # not the release, which lies in a temporary folder: errors name these files
    scores = read_object(evaluation / "scores.json", ("jf_mean", "j", "f", "all_frames", "baselines", "speed"))
    clips = read_table(evaluation / "clips.parquet", ("clip", "jf_mean", "j_mean", "f_mean"))
    tags = _lineage(release)
    try:
        figures = _figures(scores, clips)
        speed = {f"fps.{key}": str(scores["speed"][key]) for key in ("device", "precision", "size")}
        headline = {"jf_mean": f"{scores['jf_mean']:.4f}", "fps": f"{scores['speed']['network_fps']:.1f}"}
    except (KeyError, TypeError) as error:
        path = evaluation / "scores.json"
        raise DataError(f"{path}: not what the evaluation writes ({error!r})") from error
    agreement = _parity(release.parity)
    own = {"evaluate": figures, "export_onnx": agreement}
    steps = tuple(
        _step(
            step,
            run,
            folders[step] / "run.json",
            own.get(step, {}),
            tuple(_curves(folders[step], run, _LOGS[step])) if step in _LOGS else (),
        )
        for step, run in runs.items()
    )
    seconds = {f"seconds/{step}": run["seconds"] for step, run in runs.items() if "seconds" in run}
    hours = {"gpu_hours": sum(map(_gpu_hours, runs.values()))}
    return Record(
        params=flatten(release.config) | speed,
        tags=tags | speed,
        datasets=tuple(_datasets(release, {"training": runs["train"], "evaluation": runs["evaluate"]})),
        metrics=_numbers(figures | agreement | seconds | hours),
        steps=steps,
        version_tags=headline | {key: value for key, value in (tags | speed).items() if key in _VERSION_FACTS},
        clips=clips,
    )


def _step(
    step: str, run: Mapping[str, Any], record: Path, figures: Mapping[str, Any], curves: tuple[Point, ...]
) -> StepRecord:
    started = int(datetime.datetime.fromisoformat(run["started"]).timestamp() * 1000)
    seconds = float(run.get("seconds") or 0)
    known = {
        "step": step,
        "git.commit": run.get("git_commit"),
        "git.dirty": run.get("git_dirty"),
        "config.hash": run.get("config_hash"),
        "pdnet.version": run.get("pdnet"),
        **{key: run.get(key) for key in ("image", "host", "device", "precision", "processes")},
    }
    return StepRecord(
        step=step,
        started_ms=started,
        ended_ms=started + int(1000 * seconds),
        tags=_as_tags(known),
        metrics=_numbers({"seconds": seconds, "gpu_hours": _gpu_hours(run), **figures}),
        curves=curves,
        record=record,
        live_run=run.get("mlflow_run_id"),
        training=run.get("training"),
    )


def _gpu_hours(run: Mapping[str, Any]) -> float:
    return float(run.get("seconds") or 0) * int(run.get("accelerators") or 0) / 3600


def cut(text: str, limit: int) -> str:
    """`text`, shortened to `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The configuration as text by dotted key: `{"train": {"epochs": 2}}` gives `{"train.epochs": "2"}`.

    Text stays as it is; numbers, lists, true, false and null are written as JSON. A value beyond MLflow's limit is
    cut (the file of parameters keeps it whole).
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[f"{prefix}{key}"] = cut(text, MAX_PARAM)
    return flat


def label(text: Any) -> str:
    """`text` as one part of a metric's name: characters that MLflow does not accept become a space."""
    return re.sub(r"[^\w.\-]+", " ", str(text)).strip()


def _lineage(release: Release) -> dict[str, str]:
    """Where the model came from, as tags; what is not known is left out."""
    facts, files, train = release.facts, release.facts["files"], release.step("train")
    engine = files.get("tensorrt/pdnet.engine") or {}
    return _as_tags(
        {
            **{f"data.{kind}.md5": data["md5"] for kind, data in facts["data"].items() if data},
            "data.dvc.md5": facts["data_dvc"],
            "data.dvc.revision": facts["data_revision"],
            "git.commit": facts["git"]["commit"],
            "git.dirty": facts["git"]["dirty"],
            "config.hash": facts["config_hash"],
            "image": facts["image"],
            "pdnet.version": train.get("pdnet"),
            "train.host": train.get("host"),
            "train.device": train.get("device"),
            "train.precision": train.get("precision"),
            "weights.sha256": files["model.safetensors"]["sha256"],
            "onnx.sha256": files["pdnet.onnx"]["sha256"],
            "tensorrt.sha256": engine.get("sha256"),
            "release.sha256": release.sha256,
        }
    )


def _as_tags(known: Mapping[str, Any]) -> dict[str, str]:
    """What is known, as text."""
    return {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in known.items()
        if value is not None
    }


def _datasets(release: Release, runs: Mapping[str, Mapping[str, Any]]) -> Iterator[Dataset]:
    """Every data set once, with all its uses and the DVC version that it is part of."""
    uses: dict[tuple[str, str], list[str]] = {}
    facts: dict[tuple[str, str], dict[str, Any]] = {}
    dvc = {"dvc_md5": release.facts["data_dvc"], "dvc_revision": release.facts["data_revision"]}
    for use, run in runs.items():
        for kind, found in (run.get("data") or {}).items():
            if found:
                key = (kind, found["md5"][:MAX_DIGEST])
                uses.setdefault(key, []).append(use)
                facts[key] = found | dvc
    for (kind, digest), found in facts.items():
        rest = {key: value for key, value in found.items() if key != "path" and value is not None}
        yield Dataset(kind, digest, str(found["path"]), rest, ", ".join(uses[kind, digest]))


def _figures(scores: Mapping[str, Any], clips: pd.DataFrame) -> dict[str, Any]:
    """J&F of the data set with its intervals, of each scenario, each clip and the baselines; speed; parts."""
    speed, parts = scores["speed"], scores.get("parts") or {}
    where = label(re.sub(r"\((R|TM)\)", "", f"{speed['device']} {speed['precision']}"))
    figures = _measures(scores) | {
        # Frames per second of two devices are two figures: no chart may draw them as one.
        f"fps/network {where}": speed["network_fps"],
        f"fps/end_to_end {where}": speed["end_to_end_fps"],
    }
    for name, ends in (scores.get("intervals") or {}).items():
        if isinstance(ends, list):
            figures |= {f"interval/{name}_low": ends[0], f"interval/{name}_high": ends[1]}
    for scenario in scores.get("scenarios") or []:
        figures[f"scenario/jf/{label(scenario['scenario'])}"] = scenario["jf_mean"]
    figures |= {f"all_frames/{name}": value for name, value in _measures(scores["all_frames"]).items()}
    for baseline in scores["baselines"]:
        figures[f"baseline/{label(baseline['method'])}"] = baseline["jf_mean"]
    for clip in clips.to_dict("records"):
        name = "_".join(map(label, clip["clip"].split("/")))
        # MLflow's page groups by all but the last part: three groups of clips, not a group for each clip.
        figures |= {
            f"clip/jf/{name}": clip["jf_mean"],
            f"clip/j/{name}": clip["j_mean"],
            f"clip/f/{name}": clip["f_mean"],
        }
    for part, share in enumerate(parts.get("share") or [], start=1):
        figures[f"parts/share_{part}"] = share
    match = parts.get("match") or {}
    return figures | {f"parts/{name}": match[name] for name in ("purity", "nmi") if name in match}


def _measures(scores: Mapping[str, Any]) -> dict[str, Any]:
    """`jf_mean` and mean, recall and decay of J and F."""
    return {"jf_mean": scores["jf_mean"]} | {
        f"{measure}_{figure}": scores[measure][figure]
        for measure in ("j", "f")
        for figure in ("mean", "recall", "decay")
    }


def _parity(parity: Mapping[str, Any]) -> dict[str, Any]:
    """How closely the exported files agree with the network."""
    streaming = parity.get("streaming") or {}
    return {
        "onnx/jf_mean": parity["onnx"]["jf_mean"],
        "onnx/torch_jf_mean": parity["torch"]["jf_mean"],
        **{f"onnx/{name}": parity.get(name) for name in _AGREEMENT},
        **{f"onnx/streaming_{name}": streaming.get(name) for name in _AGREEMENT},
        "onnx/streaming_jf_mean": (streaming.get("onnx") or {}).get("jf_mean"),
    }


def _curves(folder: Path, run: Mapping[str, Any], columns: tuple[str, ...]) -> Iterator[Point]:
    """Every curve of a training's log; see `pdnet.tracking.curves` for their names."""
    log = read_table(folder / "log.parquet", columns)
    started = datetime.datetime.fromisoformat(run["started"]).timestamp()
    drawn: dict[str, list[pd.DataFrame]] = {}
    for phase, rows in log.groupby("phase", sort=False):
        for column in log.columns:
            if name := curve_name(column, label(phase)):
                drawn.setdefault(name, []).append(
                    rows[["step", column, "seconds"]].set_axis(("step", "y", "seconds"), axis=1)
                )
    for name, pieces in drawn.items():
        for step, value, seconds in _thinned(pd.concat(pieces).sort_values("step", kind="stable")):
            yield Point(name, int(step), float(value), int((started + seconds) * 1000))


def _thinned(rows: pd.DataFrame) -> Iterator[tuple[int, float, float]]:
    """The finite values of a curve; at most `MAX_POINTS` of them, evenly spread, the first and the last among them."""
    rows = rows[np.isfinite(rows["y"].to_numpy(np.float64))]
    if len(rows) > MAX_POINTS:
        rows = rows.iloc[np.linspace(0, len(rows) - 1, MAX_POINTS).round().astype(int)]
    return zip(rows["step"], rows["y"], rows["seconds"], strict=True)


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    """Those that are numbers."""
    return {
        name: float(value)
        for name, value in figures.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
