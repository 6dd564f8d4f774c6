"""What is recorded of a pipeline run: the folders of its steps as parameters, curves, figures, tags and files.

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
import yaml

from pdnet.data.tables import read_table
from pdnet.errors import DataError, ExportError
from pdnet.files import file_digest, read_object

#: Longest value of a parameter.
MAX_PARAM = 6000
#: Longest digest of a data set; DVC's of a folder, `<md5>.dir`, just fits.
MAX_DIGEST = 36
#: What a version of the registered model says of its origin; the run says all.
_VERSION_FACTS = (
    *("fps.device", "fps.precision", "data.videos.md5", "data.images.md5"),
    *("git.commit", "onnx.sha256", "tensorrt.sha256"),
)
#: How closely the ONNX file agrees with the network, in parity.json.
_AGREEMENT = ("max_probability_difference", "mean_probability_difference", "mask_agreement")
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
class Record:
    """Everything that one run records.

    Attributes:
        params: the configuration by dotted key, and what the speed was measured on.
        tags: lineage: data, code, image, devices.
        datasets: the data of training and evaluation.
        curves: losses, their terms and learning rates, a point a step.
        metrics: the figures of the finished model; scores in 0..1.
        version_tags: the few facts that a person compares versions by.
        files: what is kept as it is, as (file, folder in the run).
        config_yaml: the resolved configuration.
        onnx: the model that is registered.
    """

    params: dict[str, str]
    tags: dict[str, str]
    datasets: tuple[Dataset, ...]
    curves: tuple[Point, ...]
    metrics: dict[str, float]
    version_tags: dict[str, str]
    files: tuple[tuple[Path, str], ...]
    config_yaml: str
    onnx: Path


def read_record(
    config: Mapping[str, Any],
    config_hash: str,
    *,
    train: Path,
    pretrain: Path,
    evaluation: Path,
    export: Path,
    report: Path | None,
    tensorrt: Path | None = None,
) -> Record:
    """Read the folders of the steps; `report` and `tensorrt` are None where there is none.

    Raises:
        DataError: a file that a step writes is missing or is not what the step writes.
        ExportError: an exported file is not the one whose agreement with the network was measured.
    """
    weights, onnx = train / "model.safetensors", export / "pdnet.onnx"
    runs = {"pretrain": pretrain, "train": train, "evaluate": evaluation, "export_onnx": export}
    runs |= {"report": report} if report else {}
    files = (
        *([(report / "index.html", "report")] if report else []),
        *((evaluation / name, "evaluation") for name in ("scores.json", "frames.parquet", "clips.parquet")),
        (evaluation / "baselines.parquet", "evaluation"),
        (weights, "weights"),
        (export / "parity.json", "export"),
        *((folder / "run.json", f"lineage/{step}") for step, folder in runs.items()),
        *((tensorrt / name, "export/tensorrt") for name in ("pdnet.engine", "parity.json", "run.json") if tensorrt),
    )
    for path in (onnx, *(path for path, _ in files)):
        if not path.is_file():
            raise DataError(f"{path}: no such file; expected what the step before writes there")
    facts = {step: read_object(folder / "run.json", ("started",)) for step, folder in runs.items()}
    scores = read_object(evaluation / "scores.json", ("jf_mean", "j", "f", "all_frames", "baselines", "speed"))
    clips = read_table(evaluation / "clips.parquet", ("clip", "jf_mean", "j_mean", "f_mean"))
    parity = read_object(export / "parity.json", ("sha256", "torch.jf_mean", "onnx.jf_mean", *_AGREEMENT))
    tags = _lineage(facts["train"], config_hash) | {"weights.sha256": file_digest(weights)}
    tags["onnx.sha256"] = _compared(onnx)
    if tensorrt:
        tags["tensorrt.sha256"] = _compared(tensorrt / "pdnet.engine")
        source = read_object(tensorrt / "parity.json", ("onnx_sha256",))["onnx_sha256"]
        if source != tags["onnx.sha256"]:
            raise ExportError(f"{tensorrt}: built from another ONNX file, of SHA-256 {source}; expected {onnx}")
    try:
        metrics = _figures(scores, clips)
        speed = {f"fps.{key}": str(scores["speed"][key]) for key in ("device", "precision", "size")}
        headline = {"jf_mean": f"{scores['jf_mean']:.4f}", "fps": f"{scores['speed']['network_fps']:.1f}"}
    except (KeyError, TypeError) as error:
        raise DataError(f"{evaluation / 'scores.json'}: not what the evaluation writes ({error!r})") from error
    seconds = {f"seconds/{step}": run["seconds"] for step, run in facts.items() if "seconds" in run}
    return Record(
        params=flatten(config) | speed,
        tags=tags | speed,
        datasets=tuple(_datasets({"training": facts["train"], "evaluation": facts["evaluate"]})),
        curves=(*_train_curves(train, facts["train"]), *_pretrain_curves(pretrain, facts["pretrain"])),
        metrics={
            name: float(value) for name, value in (metrics | _parity(parity) | seconds).items() if _is_number(value)
        },
        version_tags=headline | {key: value for key, value in (tags | speed).items() if key in _VERSION_FACTS},
        files=files,
        config_yaml=yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
        onnx=onnx,
    )


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


def _compared(exported: Path) -> str:
    """The SHA-256 of an exported file.

    Raises:
        ExportError: the parity.json beside it is of another file.
    """
    sha256, compared = file_digest(exported), exported.with_name("parity.json")
    if (expected := read_object(compared, ("sha256",))["sha256"]) != sha256:
        raise ExportError(
            f"{exported}: not the file that was compared with the network: "
            f"its SHA-256 is {sha256}, {compared} says {expected}"
        )
    return sha256


def _lineage(run: Mapping[str, Any], config_hash: str) -> dict[str, str]:
    """Where the model came from, as tags; what is not known is left out."""
    data = run.get("data") or {}
    known = {
        **{f"data.{kind}.md5": facts["md5"] for kind, facts in data.items() if facts},
        "data.dvc.md5": run.get("data_dvc"),
        "git.commit": run.get("git_commit"),
        "git.dirty": run.get("git_dirty"),
        "config.hash": config_hash,
        "image": run.get("image"),
        "pdnet.version": run.get("pdnet"),
        "train.device": run.get("device"),
        "train.precision": run.get("precision"),
    }
    return {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in known.items()
        if value is not None
    }


def _datasets(runs: Mapping[str, Mapping[str, Any]]) -> Iterator[Dataset]:
    """Every data set once, with all its uses."""
    uses: dict[tuple[str, str], list[str]] = {}
    facts: dict[tuple[str, str], dict[str, Any]] = {}
    for use, run in runs.items():
        for kind, found in (run.get("data") or {}).items():
            if found:
                key = (kind, found["md5"][:MAX_DIGEST])
                uses.setdefault(key, []).append(use)
                facts[key] = found
    for (kind, digest), found in facts.items():
        rest = {key: value for key, value in found.items() if key != "path"}
        yield Dataset(kind, digest, str(found["path"]), rest, ", ".join(uses[kind, digest]))


def _figures(scores: Mapping[str, Any], clips: pd.DataFrame) -> dict[str, Any]:
    """J&F of the data set, of each clip and of the baselines; speed; parts."""
    speed, parts = scores["speed"], scores.get("parts") or {}
    where = label(re.sub(r"\((R|TM)\)", "", f"{speed['device']} {speed['precision']}"))
    figures = _measures(scores) | {
        # Frames per second of two devices are two figures: no chart may draw them as one.
        f"fps/network {where}": speed["network_fps"],
        f"fps/end_to_end {where}": speed["end_to_end_fps"],
    }
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
    return {
        "onnx/jf_mean": parity["onnx"]["jf_mean"],
        "onnx/torch_jf_mean": parity["torch"]["jf_mean"],
        **{f"onnx/{name}": parity[name] for name in _AGREEMENT},
    }


def _train_curves(folder: Path, run: Mapping[str, Any]) -> Iterator[Point]:
    """`train/<term>` of the video iterations, `train/<term>_image` of the image iterations, `lr/<group>` of all.

    The total is `train/loss_video` and `train/loss_image`: the two sum different terms and are not comparable.
    """
    log = read_table(folder / "log.parquet", ("step", "phase", "loss", "seconds"))
    not_terms = {"step", "epoch", "phase", "data_seconds", "seconds"}
    terms = [name for name in log.columns if name not in not_terms and not name.startswith("lr_")]
    for phase, rows in log.groupby("phase", sort=False):
        for term in terms:
            plain = phase == "video" and term != "loss"
            yield from _curve(rows, term, f"train/{term}" if plain else f"train/{term}_{label(phase)}", run)
    for name in log.columns:
        if name.startswith("lr_"):
            yield from _curve(log, name, f"lr/{name.removeprefix('lr_')}", run)


def _pretrain_curves(folder: Path, run: Mapping[str, Any]) -> Iterator[Point]:
    log = read_table(folder / "log.parquet", ("step", "loss", "lr_encoder", "seconds"))
    yield from _curve(log, "loss", "pretrain/loss", run)
    yield from _curve(log, "lr_encoder", "lr/pretrain_encoder", run)


def _curve(rows: pd.DataFrame, column: str, name: str, run: Mapping[str, Any]) -> Iterator[Point]:
    """The numbers of one column; at most `MAX_POINTS` of them, evenly spread, the first and the last among them."""
    rows = rows[np.isfinite(rows[column].to_numpy(np.float64))]
    if len(rows) > MAX_POINTS:
        rows = rows.iloc[np.linspace(0, len(rows) - 1, MAX_POINTS).round().astype(int)]
    started = datetime.datetime.fromisoformat(run["started"]).timestamp()
    for step, value, seconds in zip(rows["step"], rows[column], rows["seconds"], strict=True):
        yield Point(name, int(step), float(value), int((started + seconds) * 1000))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
