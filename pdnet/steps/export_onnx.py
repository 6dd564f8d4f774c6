"""Step 6: the ONNX files, accepted only when they are the same model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pdnet import __version__
from pdnet.config import Config
from pdnet.data.index import index_clips
from pdnet.data.io import read_image
from pdnet.errors import DataError, ExportError
from pdnet.evaluation.evaluate import clips_of, score_table
from pdnet.evaluation.scoring import summarise
from pdnet.export.onnx import PAIR, REFERENCE_ENCODER, SEGMENTER, PairGraph, export_pair, export_streaming
from pdnet.files import atomic_folder, file_digest, read_object, write_json
from pdnet.inference.onnx_backend import OnnxModel, PairBackend, StreamingBackend, pair_reference
from pdnet.inference.session import Backend, PortraitSession
from pdnet.steps.run_record import RunRecord
from pdnet.weights import load_model


def export_onnx(*, videos: Path, model: Path, evaluation: Path, out: Path, config: Config) -> None:
    """Write the network as ONNX and measure J&F again through the files.

    The pair graph, and the two graphs that stream; a network without IPDA refers to nothing and has the first alone.

    Args:
        videos: data set in the MVPS layout; its `val` clips are used.
        model: folder of the train step.
        evaluation: folder of the evaluate step, whose J&F the files must reach.
        out: folder for pdnet.onnx, reference_encoder.onnx, segmenter.onnx, parity.json, run.json.
        config: `export`, `evaluation`, `data`.

    Raises:
        DataError: a frame cannot be read, or `evaluation` is of other data.
        ExportError: a graph cannot be written, or differs from the network by more than `export` allows.
        CheckpointError: the model file is damaged or of another architecture.
    """
    frames = index_clips(videos, resolution=config.data.resolution, splits=("val",))
    record = RunRecord("export_onnx", config, parents=(model, evaluation), data={"videos": videos})
    check_same_data(record, evaluation, videos)
    network = load_model(model / "model.safetensors", expected=config.model)
    with atomic_folder(out) as folder:
        metadata = {
            "pdnet": __version__,
            "config_hash": str(record.facts["config_hash"]),
            "git_commit": str(record.facts["git_commit"] or ""),
            "data_md5": str(record.facts["data"]["videos"]["md5"]),
            "preprocessing": "RGB, resized to the input size, /255, ImageNet mean and standard deviation",
        }
        how: dict[str, Any] = {"size": config.data.size, "opset": config.export.opset, "metadata": metadata}
        original = PairGraph(network)
        scored = {"torch": {"jf_mean": float(read_object(evaluation / "scores.json", ("jf_mean",))["jf_mean"])}}

        export_pair(network, folder / PAIR, **how)
        pair = PairBackend(OnnxModel(folder / PAIR))
        facts = compare(original, pair, frames, count=config.export.parity_frames) | scored
        found = score(pair, frames, config, label="score the ONNX file")
        facts["onnx"] = {"jf_mean": found}
        facts |= {"opset": config.export.opset, "sha256": file_digest(folder / PAIR)}
        check(facts, config, "onnx", "ONNX file")

        if config.model.ipda:
            export_streaming(network, folder, **how)
            streaming = StreamingBackend(folder)
            own = compare(original, streaming, frames, count=config.export.parity_frames)
            found = score(streaming, frames, config, label="score the streaming ONNX pair")
            own["onnx"] = {"jf_mean": found}
            own["files"] = {name: file_digest(folder / name) for name in (REFERENCE_ENCODER, SEGMENTER)}
            check(own | scored, config, "onnx", "streaming ONNX pair")
            facts["streaming"] = own
        write_json(folder / "parity.json", facts)
        record.write(folder)


def check_same_data(record: RunRecord, evaluation: Path, videos: Path) -> None:
    """See that a file is scored on the data that the network was scored on.

    Raises:
        DataError: `evaluation` is of other data.
    """
    evaluated = record.facts["parents"].get("evaluate", {}).get("data", {}).get("videos", {}).get("md5")
    if evaluated not in (None, record.facts["data"]["videos"]["md5"]):
        raise DataError(f"{evaluation}: scored on other data than {videos}; its J&F says nothing about this file")


def compare(
    original: Callable[[Tensor, Tensor], Tensor], exported: Backend, frames: pd.DataFrame, *, count: int
) -> dict[str, Any]:
    """Probabilities of the original and of what was exported, on `count` frames spread over the validation clips."""
    rows = frames[frames["split"] == "val"]
    chosen = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))]
    first = {name: clip["image"].iloc[0] for name, clip in clips_of(frames)}
    largest, total, agreement = 0.0, 0.0, 0.0
    for row in chosen.itertuples(index=False):
        clip = PortraitSession(exported, reference=read_image(first[str(row.clip)]))
        target, reference = (clip.to_input(read_image(path)) for path in (str(row.image), first[str(row.clip)]))
        with torch.inference_mode():
            wanted = original(target, pair_reference(target, [(reference,)] * exported.references))
        found = clip.infer(target).probability
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


def score(exported: Backend, frames: pd.DataFrame, config: Config, *, label: str) -> float:
    """J&F of the validation clips, in 0..1, segmented by what was exported."""
    threshold = config.evaluation.threshold
    table = score_table(
        lambda reference: PortraitSession(exported, reference=reference), frames, threshold=threshold, label=label
    )
    return float(summarise(table, config.evaluation.protocol).dataset["jf_mean"])


def check(facts: Mapping[str, Any], config: Config, side: str, name: str, *, original: str = "network") -> None:
    """Refuse a file that is not the same model.

    Args:
        facts: what goes to parity.json.
        config: `export`.
        side: the key of the file's J&F in `facts`.
        name: what the file is called.
        original: what its probabilities were compared with.

    Raises:
        ExportError: which figure is out of bounds, and what was allowed.
    """
    largest = facts["max_probability_difference"]
    if not largest <= config.export.max_probability_difference:
        raise ExportError(
            f"the {name} differs from the {original} by {largest:.2g} in probability, "
            f"allowed {config.export.max_probability_difference:g} (export.max_probability_difference)"
        )
    ours, theirs = (100 * facts[which]["jf_mean"] for which in ("torch", side))
    if not abs(ours - theirs) <= config.export.max_jf_difference:
        raise ExportError(
            f"the {name} scores J&F {theirs:.2f}, the network {ours:.2f}, "
            f"allowed difference {config.export.max_jf_difference:g} (export.max_jf_difference)"
        )
