"""Step 6: the ONNX files, accepted only when they are the same model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pdnet import __version__
from pdnet.config import Config, load_yaml
from pdnet.data.index import index_clips
from pdnet.data.io import read_image
from pdnet.errors import DataError, ExportError
from pdnet.evaluation.evaluate import clips_of
from pdnet.export.config import Bounds, ParityBounds
from pdnet.export.convert import Feeds, convolutions, losses, to_half, to_int8
from pdnet.export.onnx import (
    FEATURES,
    INPUTS,
    PAIR,
    REFERENCE_ENCODER,
    SEGMENTER,
    Form,
    PairGraph,
    export_pair,
    export_streaming,
)
from pdnet.files import atomic_folder, file_digest, read_object, write_json
from pdnet.inference.onnx_backend import OnnxModel, PairBackend, StreamingBackend, pair_reference
from pdnet.inference.session import to_input
from pdnet.model import PDNet
from pdnet.steps import parity
from pdnet.steps.run_record import RunRecord
from pdnet.weights import load_model

logger = logging.getLogger("pdnet.steps.export_onnx")


def export_onnx(
    *, videos: Path, model: Path, evaluation: Path, out: Path, config: Config, bounds: Path | None = None
) -> None:
    """Write the network as ONNX and measure J&F again through the files.

    The pair graph, and the two graphs that stream; a network without IPDA refers to nothing and has the first alone.
    In float32, and in a folder each in the precisions that `export.precisions` names.

    Args:
        videos: data set in the MVPS layout; its `val` clips are used, and `train` clips to calibrate int8.
        model: folder of the train step.
        evaluation: folder of the evaluate step, whose J&F the files must reach.
        out: folder for pdnet.onnx, reference_encoder.onnx, segmenter.onnx, fp16/, int8/, parity.json, run.json.
        config: `export`, `evaluation`, `data`.
        bounds: YAML file that says how far a file may be from the network (default: as configs/export.yaml).

    Raises:
        DataError: a frame cannot be read, or `evaluation` is of other data.
        ExportError: a graph cannot be written, or differs from the network by more than the bounds allow.
        CheckpointError: the model file is damaged or of another architecture.
        ConfigError: the bounds are missing or damaged.
    """
    limits = load_yaml(ParityBounds, bounds, what="the bounds of parity") if bounds else ParityBounds()
    splits = ("train", "val") if "int8" in config.export.precisions else ("val",)
    frames = index_clips(videos, resolution=config.data.resolution, splits=splits)
    record = RunRecord("export_onnx", config, parents=(model, evaluation), data={"videos": videos})
    check_same_data(record, evaluation, videos)
    network = load_model(model / "model.safetensors", expected=config.model)
    ours = float(read_object(evaluation / "scores.json", ("jf_mean",))["jf_mean"])
    metadata = {
        "pdnet": __version__,
        "config_hash": str(record.facts["config_hash"]),
        "git_commit": str(record.facts["git_commit"] or ""),
        "data_md5": str(record.facts["data"]["videos"]["md5"]),
        "licence": config.tracking.licence or "not stated",
    }
    form = Form(config.data.size, config.export.opset, config.export.input, config.export.any_size, metadata)
    with atomic_folder(out) as folder:
        export_pair(network, folder / PAIR, form)
        if config.model.ipda:
            export_streaming(network, folder, form)
        judge = _Judge(network, frames, config, ours)
        found = judge.accept(folder, limits.fp32, "fp32")
        facts = found.pop("pair") | found | {"torch": {"jf_mean": ours}, "opset": config.export.opset}
        precisions: dict[str, Any] = {}
        if "fp16" in config.export.precisions:
            for name in judge.files:
                to_half(folder / name, _new(folder / "fp16") / name)
            precisions["fp16"] = judge.accept(folder / "fp16", limits.fp16, "fp16")
        if "int8" in config.export.precisions:
            precisions["int8"] = _quantise(folder, _new(folder / "int8"), judge, limits.int8)
        write_json(folder / "parity.json", facts | {"precisions": precisions, "bounds": dataclasses.asdict(limits)})
        record.write(folder)


def check_same_data(record: RunRecord, evaluation: Path, videos: Path) -> None:
    """See that a file is scored on the data that the network was scored on.

    Raises:
        DataError: `evaluation` is of other data.
    """
    evaluated = record.facts["parents"].get("evaluate", {}).get("data", {}).get("videos", {}).get("md5")
    if evaluated not in (None, record.facts["data"]["videos"]["md5"]):
        raise DataError(f"{evaluation}: scored on other data than {videos}; its J&F says nothing about this file")


class NetworkPair:
    """The network as the pair graph that figure 5 draws: what exported pair graphs are compared with."""

    raw = False

    def __init__(self, network: PDNet, size: int) -> None:
        self._graph = PairGraph(network.eval().to("cpu", torch.float32))
        self.size, self.references = size, network.config.references

    def probability(self, target: Tensor, reference: Tensor) -> Tensor:
        """(B, 3, S, S) and (B, 3, S, S), or (B, N, 3, S, S) for N references -> (B, 1, S, S) float32."""
        with torch.inference_mode():
            found: Tensor = self._graph(target, reference)
            return found


class _Judge:
    """Compares the graphs of a folder with the network, and scores them."""

    def __init__(self, network: PDNet, frames: pd.DataFrame, config: Config, ours: float) -> None:
        self.network, self.frames, self.config, self.ours = network, frames, config, ours
        self.files = (PAIR, *((REFERENCE_ENCODER, SEGMENTER) if config.model.ipda else ()))

    def rows(self, folder: Path) -> dict[str, list[dict[str, Any]]]:
        """The comparison of the pair graph, and of the graphs that stream."""
        export, size = self.config.export, self.config.data.size
        pair = PairBackend(OnnxModel(folder / PAIR))
        how: dict[str, Any] = {"count": export.parity_frames}
        ways = parity.cases(pair, any_size=export.any_size, references=(pair.references,))
        original = PairBackend(NetworkPair(self.network, size))
        rows = {"pair": parity.compare(original, pair, self.frames, **how, cases=ways, file=PAIR)}
        if len(self.files) > 1:
            stream = StreamingBackend(folder)
            ways = parity.cases(stream, any_size=export.any_size, references=parity.REFERENCES)
            whole = parity.Original(self.network, size)
            rows["streaming"] = parity.compare(whole, stream, self.frames, **how, cases=ways, file=SEGMENTER)
        return rows

    def accept(self, folder: Path, bounds: Bounds, precision: str) -> dict[str, Any]:
        """What goes to parity.json about the graphs of a folder.

        Raises:
            ExportError: they are not the same model.
        """
        rows = self.rows(folder)
        facts: dict[str, Any] = {"cases": [row for each in rows.values() for row in each]}
        names = {"pair": f"the {precision} ONNX file", "streaming": f"the {precision} streaming ONNX pair"}
        for way, some in rows.items():
            if lines := parity.excess(some, bounds):
                raise parity.refusal(names[way], lines, some)
            facts[way] = parity.worst(some)
        for way, some in rows.items():  # all of it takes long, and a bad graph is known by now
            theirs = self.score(folder, way, precision)
            if lines := parity.jf_excess(bounds, ours=self.ours, theirs=theirs):
                raise parity.refusal(names[way], lines, some)
            facts[way]["onnx"] = {"jf_mean": theirs}
        facts["pair"]["sha256"] = file_digest(folder / PAIR)
        if "streaming" in facts:
            facts["streaming"]["files"] = {name: file_digest(folder / name) for name in self.files[1:]}
        return facts

    def score(self, folder: Path, way: str, precision: str) -> float:
        """J&F of the validation clips, in 0..1."""
        backend = PairBackend(OnnxModel(folder / PAIR)) if way == "pair" else StreamingBackend(folder)
        label = f"score the {precision} ONNX {'file' if way == 'pair' else 'streams'}"
        return parity.score(backend, self.frames, self.config, label=label)


def _quantise(source: Path, folder: Path, judge: _Judge, bounds: Bounds) -> dict[str, Any]:
    """Write the graphs with as many convolutions in int8 as the bounds allow: those that lose most go back to float.

    Raises:
        ExportError: the bounds do not even hold with one convolution in int8.
    """
    feeds = {name: list(each) for name, each in _calibration(source, judge).items()}
    layers = list(dict.fromkeys(layer for name in judge.files for layer in convolutions(source / name)))
    ranked: list[str] = []
    kept = 0
    while True:
        keep = ranked[:kept]
        for name in judge.files:
            to_int8(source / name, folder / name, feeds[name], keep=keep)
        if not ranked:
            found = [losses(source / name, folder / name, feeds[name][:4]) for name in judge.files]
            ranked = sorted(layers, key=lambda layer: min(each.get(layer, float("inf")) for each in found))
        try:
            return judge.accept(folder, bounds, "int8") | {"float_layers": keep}
        except ExportError as error:
            kept = max(1, 2 * kept)
            if kept >= len(layers):
                raise
            logger.info("%s; %d of %d convolutions stay in float32", error, kept, len(layers))


def _calibration(folder: Path, judge: _Judge) -> dict[str, Iterator[Feeds]]:
    """Inputs of each graph, from frames spread over the training clips and the first frames of their clips.

    Raises:
        DataError: there are no training clips.
    """
    clips = [list(clip["image"]) for _, clip in clips_of(judge.frames, "train")]
    size = judge.config.data.size
    chosen = parity.spread(clips, judge.config.export.calibration_frames)
    pair = OnnxModel(folder / PAIR)

    def image(path: str) -> Tensor:
        return to_input(read_image(path), size, raw=pair.raw)

    def pairs() -> Iterator[Feeds]:
        for clip, index in chosen:
            target = image(clip[index])
            reference = pair_reference(target, [(image(clip[0]),)] * pair.references)
            yield dict(zip(INPUTS, (target.numpy(), reference.numpy()), strict=True))

    def references() -> Iterator[Feeds]:
        for clip, index in chosen:
            yield {"image": image(clip[index]).numpy()}

    def targets() -> Iterator[Feeds]:
        stream = StreamingBackend(folder)
        for clip, index in chosen:
            features = (x.numpy() for x in stream.encode(image(clip[0])))
            yield {"image": image(clip[index]).numpy()} | dict(zip(FEATURES, features, strict=True))

    made = {PAIR: pairs(), REFERENCE_ENCODER: references(), SEGMENTER: targets()}
    return {name: made[name] for name in judge.files}


def _new(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
