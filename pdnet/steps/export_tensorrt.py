"""After step 6, where there is a GPU: the TensorRT engines, accepted only when they are the same model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pdnet.config import Config, load_yaml
from pdnet.data.index import index_clips
from pdnet.devices import device_name, pick_device
from pdnet.errors import ConfigError, ExportError
from pdnet.export.config import ParityBounds
from pdnet.export.tensorrt import BATCHES, build_engine
from pdnet.files import atomic_folder, file_digest, read_object, write_json
from pdnet.inference.bench import Comparison, compare
from pdnet.inference.onnx_backend import OnnxModel, PairBackend, StreamingBackend
from pdnet.inference.session import Backend, to_input
from pdnet.inference.tensorrt_backend import SEGMENTER, TensorRTBackend, TensorRTModel, require_tensorrt
from pdnet.inference.ways import some_frame
from pdnet.steps import parity
from pdnet.steps.export_onnx import check_same_data
from pdnet.steps.run_record import RunRecord
from pdnet.tracking.release import exported

_PAIR = "pdnet.engine"


def export_tensorrt(
    *,
    videos: Path,
    export: Path,
    evaluation: Path,
    out: Path,
    config: Config,
    bounds: Path | None = None,
    timing_cache: Path | None = None,
) -> None:
    """Build TensorRT engines from the ONNX files and measure J&F again through the engines.

    They are built from the files of the form that `export.tensorrt_precision` needs, compared with those in float32,
    and timed. A network without IPDA has the engine of the pair graph alone.

    Args:
        videos: data set in the MVPS layout; its `val` clips are used.
        export: folder of the export_onnx step.
        evaluation: folder of the evaluate step, whose J&F the engines must reach.
        out: folder for pdnet.engine, reference_encoder.engine, segmenter.engine, parity.json, run.json.
        config: `export`, `evaluation`, `data`, `device`.
        bounds: YAML file that says how far an engine may be from the network (default: as configs/export.yaml).
        timing_cache: file with TensorRT's own measurements on this machine, which make the next build faster; is made
            where it is not there.

    Raises:
        UnavailableError: this machine lacks the library or a GPU; said before any work.
        ConfigError: there are no ONNX files of the form that the precision needs; or the bounds are damaged.
        DataError: a frame cannot be read, or `evaluation` is of other data.
        ExportError: an engine cannot be built, or differs from the network by more than the bounds allow.
    """
    device = pick_device(config.device)
    trt = require_tensorrt(device, purpose="built")
    limits = load_yaml(ParityBounds, bounds, what="the bounds of parity") if bounds else ParityBounds()
    precision = config.export.tensorrt_precision
    frames = index_clips(videos, resolution=config.data.resolution, splits=("val",))
    record = RunRecord("export_tensorrt", config, parents=(export, evaluation), data={"videos": videos})
    check_same_data(record, evaluation, videos)
    facts = read_object(export / "parity.json", ("sha256", "onnx.jf_mean", "opset"))
    sources = _sources(export, facts, precision)
    ours = float(read_object(evaluation / "scores.json", ("jf_mean",))["jf_mean"])
    judge = _Judge(frames, config, limits, ours)
    with atomic_folder(out) as folder, torch.cuda.device(device):
        profiles = {}
        for name in sources:
            engine = folder / Path(name).with_suffix(".engine").name
            profiles[engine.name] = build_engine(
                trt, export / name, engine, precision=precision, timing_cache=timing_cache
            )
        digests = {name: file_digest(folder / name) for name in profiles}
        pair = PairBackend(TensorRTModel(trt, folder / _PAIR, device))
        original: Backend = PairBackend(OnnxModel(export / "pdnet.onnx"))
        found, rows = judge.accept(original, pair, _PAIR, (pair.references,))
        found |= {"onnx": facts["onnx"], "sha256": digests.pop(_PAIR), "onnx_sha256": next(iter(sources.values()))}
        if digests:
            backend = TensorRTBackend(trt, folder, device, precision=precision)
            streaming, more = judge.accept(StreamingBackend(export), backend, SEGMENTER, parity.REFERENCES)
            found["streaming"] = streaming | {"onnx": facts["streaming"]["onnx"], "files": digests}
            rows += more
            found["speed"] = _speed(backend, rounds=config.evaluation.speed_frames).to_json()
        found |= {
            "torch": {"jf_mean": ours},
            "opset": facts["opset"],
            "device": device_name(device),
            "tensorrt_version": trt.__version__,
            "precision": precision,
            "sources": sources,
            "profiles": profiles,
            "cases": rows,
            "bounds": dataclasses.asdict(limits),
        }
        write_json(folder / "parity.json", found)
        record.write(folder, device=device_name(device), precision=precision, accelerators=1)


def _speed(backend: TensorRTBackend, *, rounds: int) -> Comparison:
    """The engines on a prepared frame of noise: against one reference, against two, and as many as fit."""
    image = to_input(some_frame(), backend.size, raw=backend.raw)
    reference, most = backend.encode(image), BATCHES[-1]
    calls: dict[str, Callable[[], object]] = {
        "one reference": partial(backend.segment, image, [reference]),
        "two references": partial(backend.segment, image, [reference] * 2),
        f"{most} frames at once": partial(backend.segment, torch.cat([image] * most), [reference]),
        "a reference encoded": lambda: [x.cpu() for x in backend.encode(image)],
    }
    return compare(calls, rounds=rounds, warm_up=3, table="network alone")


def _sources(export: Path, facts: dict[str, Any], precision: str) -> dict[str, str]:
    """The ONNX files that engines of a precision are built from, the pair graph first, with their SHA-256.

    Raises:
        ConfigError: there are none of the form that it needs.
        ExportError: they, or those in float32 that the engines are compared with, are not what was accepted.
    """
    form = "fp32" if precision in ("fp32", "tf32") else precision
    sources: dict[str, str] = {}
    for each in exported(facts):
        if each.precision == form:
            sources |= each.files
        elif each.precision != "fp32":
            continue
        for name, sha256 in each.files.items():
            path = export / name
            if not path.is_file():
                raise ExportError(f"{path}: no such file; expected what {export / 'parity.json'} names")
            if (found := file_digest(path)) != sha256:
                raise ExportError(f"{path}: its SHA-256 is {found}, {export / 'parity.json'} says {sha256}")
    if not sources:
        raise ConfigError(
            f"export.tensorrt_precision: {precision} needs ONNX files in {form}, {export} has none; "
            f"name {form} in export.precisions and run `pdnet export onnx` again"
        )
    return sources


class _Judge:
    """Compares engines with the ONNX files in float32, and scores them."""

    def __init__(self, frames: pd.DataFrame, config: Config, limits: ParityBounds, ours: float) -> None:
        self.frames, self.config, self.ours = frames, config, ours
        self.precision = config.export.tensorrt_precision
        self.bounds = getattr(limits, self.precision)

    def accept(
        self, original: Backend, engine: Backend, file: str, references: Sequence[int]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What goes to parity.json about an engine, and the rows of its comparison.

        Raises:
            ExportError: it is not the same model.
        """
        export = self.config.export
        ways = parity.cases(engine, any_size=export.any_size, references=references)
        rows = parity.compare(original, engine, self.frames, count=export.parity_frames, cases=ways, file=file)
        name = f"{file} of TensorRT in {self.precision}"
        if lines := parity.excess(rows, self.bounds):
            raise parity.refusal(name, lines, rows)
        theirs = parity.score(engine, self.frames, self.config, label=f"score {name}")
        if lines := parity.jf_excess(self.bounds, ours=self.ours, theirs=theirs):
            raise parity.refusal(name, lines, rows)
        return parity.worst(rows) | {"tensorrt": {"jf_mean": theirs}}, rows
