"""After step 6, where there is a GPU: the TensorRT engine, accepted only when it is the same model."""

from __future__ import annotations

from pathlib import Path

import torch

from pdnet.config import Config
from pdnet.data.index import index_clips
from pdnet.devices import device_name, pick_device
from pdnet.errors import ExportError
from pdnet.export.tensorrt import TensorRTModel, build_engine, require_tensorrt
from pdnet.files import atomic_folder, file_digest, read_object, write_json
from pdnet.inference.onnx_backend import OnnxModel, PairBackend
from pdnet.steps.export_onnx import check, check_same_data, compare, score
from pdnet.steps.run_record import RunRecord


def export_tensorrt(*, videos: Path, export: Path, evaluation: Path, out: Path, config: Config) -> None:
    """Build a TensorRT engine from the ONNX file and measure J&F again through the engine.

    Args:
        videos: data set in the MVPS layout; its `val` clips are used.
        export: folder of the export_onnx step.
        evaluation: folder of the evaluate step, whose J&F the engine must reach.
        out: folder for pdnet.engine, parity.json, run.json.
        config: `export`, `evaluation`, `data`, `device`.

    Raises:
        UnavailableError: this machine lacks the library or a GPU; said before any work.
        DataError: a frame cannot be read, or `evaluation` is of other data.
        ExportError: the engine cannot be built, or differs from the network by more than `export` allows.
    """
    device = pick_device(config.device)
    trt = require_tensorrt(device)
    frames = index_clips(videos, resolution=config.data.resolution, splits=("val",))
    record = RunRecord("export_tensorrt", config, parents=(export, evaluation), data={"videos": videos})
    check_same_data(record, evaluation, videos)
    onnx, source = export / "pdnet.onnx", read_object(export / "parity.json", ("sha256", "onnx.jf_mean", "opset"))
    original = OnnxModel(onnx)
    if (sha256 := file_digest(onnx)) != source["sha256"]:
        raise ExportError(f"{onnx}: its SHA-256 is {sha256}, {export / 'parity.json'} says {source['sha256']}")
    with atomic_folder(out) as folder, torch.cuda.device(device):
        path = folder / "pdnet.engine"
        build_engine(trt, onnx, path, precision=config.export.tensorrt_precision)
        engine = PairBackend(TensorRTModel(trt, path, device))
        parity = compare(original.probability, engine, frames, count=config.export.parity_frames)
        facts = parity | {
            "torch": {"jf_mean": float(read_object(evaluation / "scores.json", ("jf_mean",))["jf_mean"])},
            "onnx": source["onnx"],
            "tensorrt": {"jf_mean": score(engine, frames, config, label="score the TensorRT engine")},
            "opset": source["opset"],
            "sha256": file_digest(path),
            "onnx_sha256": sha256,
            "device": device_name(device),
            "tensorrt_version": trt.__version__,
            "precision": config.export.tensorrt_precision,
        }
        check(facts, config, "tensorrt", "TensorRT engine", original="ONNX file")
        write_json(folder / "parity.json", facts)
        precision = config.export.tensorrt_precision
        record.write(folder, device=device_name(device), precision=precision, accelerators=1)
