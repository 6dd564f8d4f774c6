"""Step 6: the ONNX file, accepted only when it is the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pdnet import __version__
from pdnet.config import Config
from pdnet.data.index import index_clips
from pdnet.data.io import read_image
from pdnet.errors import DataError, ExportError
from pdnet.evaluation.evaluate import clips_of, score_clips
from pdnet.evaluation.scoring import summarise
from pdnet.export.onnx import PairGraph, export_pair
from pdnet.files import atomic_folder, file_digest, read_object, write_json
from pdnet.inference.onnx_session import OnnxModel, OnnxSession
from pdnet.model import PDNet
from pdnet.steps.lineage import RunRecord
from pdnet.weights import load_model


def export_onnx(*, videos: Path, model: Path, evaluation: Path, out: Path, config: Config) -> None:
    """Write the network as ONNX and measure J&F again through the file.

    Args:
        videos: data set in the MVPS layout; its `val` clips are used.
        model: folder of the train step.
        evaluation: folder of the evaluate step, whose J&F the file must reach.
        out: folder for pdnet.onnx, parity.json, run.json.
        config: `export`, `evaluation`, `data`.

    Raises:
        DataError: a frame cannot be read, or `evaluation` is of other data.
        ExportError: the graph cannot be written, or differs from the network by more than `export` allows.
        CheckpointError: the model file is damaged or of another architecture.
    """
    frames = index_clips(videos, resolution=config.data.resolution, splits=("val",))
    record = RunRecord("export_onnx", config, parents=(model, evaluation), data={"videos": videos})
    evaluated = record.facts["parents"].get("evaluate", {}).get("data", {}).get("videos", {}).get("md5")
    if evaluated not in (None, record.facts["data"]["videos"]["md5"]):
        raise DataError(f"{evaluation}: scored on other data than {videos}; its J&F says nothing about this file")
    network = load_model(model / "model.safetensors", expected=config.model)
    with atomic_folder(out) as folder:
        path = folder / "pdnet.onnx"
        metadata = {
            "pdnet": __version__,
            "config_hash": str(record.facts["config_hash"]),
            "git_commit": str(record.facts["git_commit"] or ""),
            "data_md5": str(record.facts["data"]["videos"]["md5"]),
            "preprocessing": "RGB, resized to the input size, /255, ImageNet mean and standard deviation",
        }
        export_pair(network, path, size=config.data.size, opset=config.export.opset, metadata=metadata)
        exported = OnnxModel(path)
        parity = compare(network, exported, frames, count=config.export.parity_frames)
        rows = [
            {"clip": frame.row.clip, "frame": frame.row.frame, "j": frame.j, "f": frame.f}
            for frame in score_clips(
                lambda reference: OnnxSession(exported, reference=reference),
                frames,
                threshold=config.evaluation.threshold,
                label="score the ONNX file",
            )
        ]
        ours = float(read_object(evaluation / "scores.json", ("jf_mean",))["jf_mean"])
        theirs = summarise(pd.DataFrame(rows), config.evaluation.protocol).dataset["jf_mean"]
        facts = parity | {
            "torch": {"jf_mean": ours},
            "onnx": {"jf_mean": theirs},
            "opset": config.export.opset,
            "sha256": file_digest(path),
        }
        check(facts, config)
        write_json(folder / "parity.json", facts)
        record.write(folder)


def compare(network: PDNet, exported: OnnxModel, frames: pd.DataFrame, *, count: int) -> dict[str, float]:
    """Probabilities of network and file on `count` frames spread over the validation clips."""
    graph = PairGraph(network)
    rows = frames[frames["split"] == "val"]
    chosen = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))]
    first = {name: clip["image"].iloc[0] for name, clip in clips_of(frames)}
    largest, total, agreement = 0.0, 0.0, 0.0
    for row in chosen.itertuples(index=False):
        clip = OnnxSession(exported, reference=read_image(first[str(row.clip)]))
        target = clip.to_input(read_image(str(row.image)))
        with torch.inference_mode():
            wanted = graph(target, clip.reference())
        found = exported.probability(target, clip.reference())
        difference = (wanted - found).abs()
        largest = max(largest, float(difference.max()))
        total += float(difference.mean())
        agreement += float(((wanted >= 0.5) == (found >= 0.5)).float().mean())
    return {
        "frames": len(chosen),
        "max_probability_difference": largest,
        "mean_probability_difference": total / len(chosen),
        "mask_agreement": agreement / len(chosen),
    }


def check(facts: dict[str, object], config: Config) -> None:
    """Refuse a file that is not the same model.

    Raises:
        ExportError: which figure is out of bounds, and what was allowed.
    """
    largest = float(facts["max_probability_difference"])  # type: ignore[arg-type]
    if not largest <= config.export.max_probability_difference:
        raise ExportError(
            f"the ONNX file differs from the network by {largest:.2g} in probability, "
            f"allowed {config.export.max_probability_difference:g} (export.max_probability_difference)"
        )
    scores = [100 * facts[side]["jf_mean"] for side in ("torch", "onnx")]  # type: ignore[index]
    if not abs(scores[0] - scores[1]) <= config.export.max_jf_difference:
        raise ExportError(
            f"the ONNX file scores J&F {scores[1]:.2f}, the network {scores[0]:.2f}, "
            f"allowed difference {config.export.max_jf_difference:g} (export.max_jf_difference)"
        )
