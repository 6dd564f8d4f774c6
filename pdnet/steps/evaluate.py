"""Step 5: scores, masks, parts and speed on the validation clips."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from pdnet.config import Config
from pdnet.data.index import index_clips
from pdnet.data.io import UInt8Array
from pdnet.devices import device_name, pick_device
from pdnet.evaluation.baselines import trivial_baselines
from pdnet.evaluation.bootstrap import interval
from pdnet.evaluation.evaluate import (
    Frame,
    PartStatistics,
    find_true_parts,
    measure_speed,
    part_labels,
    score_clips,
)
from pdnet.evaluation.scoring import summarise
from pdnet.files import atomic_folder, file_digest, write_json
from pdnet.inference.session import PortraitSession
from pdnet.inference.torch_backend import TorchBackend
from pdnet.overlays import part_colours
from pdnet.steps.run_record import RunRecord
from pdnet.weights import load_model

logger = logging.getLogger("pdnet.steps.evaluate")

#: the figures that are told with an interval, and by scenario
HEADLINES = ("jf_mean", "j_mean", "f_mean")
#: of the intervals: share of the resampled means within, and how many there are
LEVEL, RESAMPLES = 0.95, 10_000
#: what a pixel can be
CATEGORIES = ("background", "portrait")


def evaluate(*, videos: Path, model: Path, out: Path, config: Config) -> None:
    """Segment and score the validation clips.

    Paper: 5.2.

    Args:
        videos: data set in the MVPS layout; its `val` clips are scored, the trivial baselines look at `train` too.
        model: folder of the train step.
        out: folder for scores.json, frames.parquet, clips.parquet, baselines.parquet, masks/, parts/, run.json.
        config: `data`, `evaluation`.

    Raises:
        DataError: a frame cannot be read, or there is no validation clip.
        CheckpointError: the model file is damaged or of another architecture.
    """
    frames = index_clips(videos, resolution=config.data.resolution)
    record = RunRecord("evaluate", config, parents=(model,), data={"videos": videos})
    device = pick_device(config.device)
    network = load_model(model / "model.safetensors", expected=config.model)
    backend = TorchBackend(network, size=config.data.size, device=device)
    parts = PartStatistics(config.model.parts, find_true_parts(videos, config.data.resolution))

    with atomic_folder(out) as folder:
        rows: list[dict[str, Any]] = []
        pixels = np.zeros((2, 2), np.int64)
        for frame in score_clips(
            lambda reference: PortraitSession(backend, reference=reference),
            frames,
            threshold=config.evaluation.threshold,
        ):
            rows.append(frame_row(frame))
            parts.add(frame)
            pixels += confusion(frame)
            name = f"{frame.row.clip}/{frame.row.frame}.png"
            _save(folder / "masks" / name, Image.fromarray(frame.mask).convert("L"))
            if frame.prediction.part_prob is not None:
                _save(folder / "parts" / name, _palette(part_labels(frame, frame.prediction.part_prob)))
        table = pd.DataFrame(rows)
        scores = summarise(table, config.evaluation.protocol)
        baselines = trivial_baselines(frames, protocol=config.evaluation.protocol)
        speed = measure_speed(backend, frames, count=config.evaluation.speed_frames)
        table.to_parquet(folder / "frames.parquet", index=False)
        scores.clips.to_parquet(folder / "clips.parquet", index=False)
        baselines.to_parquet(folder / "baselines.parquet", index=False)
        write_json(
            folder / "scores.json",
            {
                "protocol": config.evaluation.protocol,
                "clips": len(scores.clips),
                "frames": len(table),
                **nested(scores.dataset),
                "intervals": intervals(scores.clips),
                "scenarios": scenarios(scores.clips),
                "all_frames": nested(summarise(table, "all-frames").dataset),
                "baselines": [{"method": row["method"], **nested(row)} for row in baselines.to_dict("records")],
                "speed": speed
                | {
                    "device": device_name(device),
                    "precision": "fp32",
                    "size": backend.size,
                    "frames": config.evaluation.speed_frames,
                },
                "parts": parts.summary(),
                "pixels": {
                    true: dict(zip(CATEGORIES, row, strict=True))
                    for true, row in zip(CATEGORIES, pixels.tolist(), strict=True)
                },
            },
        )
        scored = file_digest(model / "model.safetensors")
        record.write(
            folder,
            device=device_name(device),
            precision="float32",
            accelerators=int(device.type == "cuda"),
            model_sha256=scored,
        )
    figures = [100 * scores.dataset[name] for name in ("jf_mean", "j_mean", "f_mean")]
    logger.info("J&F %.1f (J %.1f, F %.1f), %.1f frames/s on %s", *figures, speed["network_fps"], device_name(device))


def frame_row(frame: Frame) -> dict[str, Any]:
    """One row of frames.parquet."""
    keys = ("clip", "scenario", "frame", "position", "image", "mask")
    return {key: getattr(frame.row, key) for key in keys} | {"j": frame.j, "f": frame.f}


def confusion(frame: Frame) -> npt.NDArray[np.int64]:
    """Pixels of a frame by (true, predicted), in the order of `CATEGORIES`."""
    return np.bincount(2 * frame.annotation.ravel() + frame.mask.ravel(), minlength=4).reshape(2, 2)


def intervals(clips: pd.DataFrame) -> dict[str, Any]:
    """Where the means over clips would lie with other clips of the same kind."""
    found = {name: interval(clips[name], resamples=RESAMPLES, level=LEVEL) for name in HEADLINES}
    return {"level": LEVEL, "resamples": RESAMPLES} | {name: [ends.low, ends.high] for name, ends in found.items()}


def scenarios(clips: pd.DataFrame) -> list[dict[str, Any]]:
    """The mean over the clips of each scenario."""
    groups = clips.groupby("scenario")
    means = groups[list(HEADLINES)].mean().assign(clips=groups.size()).reset_index()
    rows = means[["scenario", "clips", *HEADLINES]].to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def nested(figures: Mapping[Any, Any]) -> dict[str, Any]:
    """The figures of a data set as `{"jf_mean", "j": {...}, "f": {...}}`, NaN as None."""

    def number(key: str) -> float | None:
        value = float(figures[key])
        return None if math.isnan(value) else value

    measures = {
        measure: {name: number(f"{measure}_{name}") for name in ("mean", "recall", "decay")} for measure in "jf"
    }
    return {"jf_mean": number("jf_mean"), **measures}


def _save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _palette(labels: UInt8Array) -> Image.Image:
    """A palette image; the colours are for looking at it, the indices are what counts."""
    image = Image.fromarray(labels, "P")
    image.putpalette([0, 0, 0, *(channel for colour in part_colours(int(labels.max(initial=0))) for channel in colour)])
    return image
