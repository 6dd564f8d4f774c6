"""The folders that a finished pipeline run leaves, small and made from nothing, for the tests of the record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
from onnx import TensorProto, helper
from PIL import Image

from pdnet.files import file_digest

SIZE = 8
PRETRAIN_STEPS = 6
TRAIN_STEPS = 9
FIRST_VIDEO_STEP = 1  # image, video, video, image, ...
CLIPS = {"talk/clip_1": 0.9, "talk/clip_2": 0.7, "dance/clip:3": 0.4}
FRAMES_PER_CLIP = 4
PARTS = 3

#: Folders of the steps.
STEPS = {
    "validation": "validate",
    "pretrain": "pretrain",
    "train": "train",
    "evaluation": "evaluate",
    "export": "export_onnx",
    "report": "report",
}

CONFIG: dict[str, Any] = {
    "seed": 0,
    "device": "auto",
    "data": {"root": "data/mvps", "mean": [0.5, 0.25, 0.125], "images": None},
    "model": {"parts": PARTS, "ipda": True},
    "train": {"epochs": 2, "lr": 1e-4, "note": "n" * 7000},
}


def write_finished_run(root: Path, *, train_steps: int = TRAIN_STEPS) -> dict[str, Path]:
    """Write `validation/`, `pretrain/`, `train/`, ...; the paths are `register_model`'s arguments."""
    folders = {name: root / name for name in STEPS}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for name, step in STEPS.items():
        (folders[name] / "run.json").write_text(json.dumps(_run_facts(step)))
    _write_validation(folders["validation"])
    (folders["pretrain"] / "model.safetensors").write_bytes(b"weights of pretrain")
    _pretrain_log().to_parquet(folders["pretrain"] / "log.parquet")
    train_log(train_steps).to_parquet(folders["train"] / "log.parquet")
    write_weights(folders, b"weights of train")
    _write_evaluation(folders["evaluation"], root / "frames")
    _write_export(folders["export"])
    (folders["report"] / "index.html").write_text("<!doctype html><title>report</title><p>J&amp;F 86.0</p>")
    return folders


def write_weights(folders: Mapping[str, Path], content: bytes) -> None:
    """Let these be the weights that were trained and evaluated."""
    weights, record = folders["train"] / "model.safetensors", folders["evaluation"] / "run.json"
    weights.write_bytes(content)
    record.write_text(json.dumps(json.loads(record.read_text()) | {"model_sha256": file_digest(weights)}))


def train_log(steps: int) -> pd.DataFrame:
    """Image, video, video, image, ...; part terms are NaN in image rows."""
    step = np.arange(steps)
    video = step % 3 != 0
    return pd.DataFrame(
        {
            "step": step,
            "epoch": step // 6,
            "phase": np.where(video, "video", "image"),
            "loss": 2.0 / (step + 1),
            "final": 1.0 / (step + 1),
            "geometric_t": np.where(video, 0.25 + step, np.nan),
            "geometric_ref": np.where(video, 0.5 + step, np.nan),
            "lr_backbone": 1e-3 * (steps - step),
            "lr_rest": 1e-2 * (steps - step),
            "data_seconds": 0.01,
            "seconds": 0.5 * (step + 1),
        }
    )


def _pretrain_log() -> pd.DataFrame:
    step = np.arange(PRETRAIN_STEPS)
    loss = 1.0 / (step + 1)
    return pd.DataFrame(
        {"step": step, "epoch": 0, "phase": "pretrain", "loss": loss, "lr_encoder": 0.01, "seconds": 0.1 * (step + 1)}
    )


def _run_facts(step: str) -> dict[str, Any]:
    training = {"processes": 2, "accelerators": 2} if step == "train" else {}
    return training | {
        "step": step,
        "host": "example-host",
        "pdnet": "0.1.0",
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "git_dirty": True,
        "config_hash": "abcdef012345",
        "data": {
            "videos": {"path": "data/mvps", "md5": "1" * 32 + ".dir", "files": 24, "bytes": 2048},
            "images": {"path": "data/images", "md5": "2" * 32 + ".dir", "files": 12, "bytes": 1024},
        },
        "data_dvc": "3" * 32 + ".dir",
        "image": None,
        "device": "Example(R) CPU, 2 threads",
        "precision": "fp32",
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 12.5,
        "parents": {},
    }


def _write_validation(folder: Path) -> None:
    (folder / "data.json").write_text(json.dumps({"valid": True, "data": _run_facts("validate")["data"]}))
    (folder / "data_docs").mkdir()
    for name in ("index.html", "data_docs/clips.html"):
        (folder / name).write_text("<!doctype html><title>validation</title>")


def _write_evaluation(folder: Path, images: Path) -> None:
    rows, clips = [], []
    shade = np.linspace(0, 255, 48 * 64).reshape(48, 64).astype(np.uint8)
    palette = [0, 0, 0, 220, 60, 60, 60, 220, 60, 60, 60, 220] + [0] * (252 * 3)
    for clip, score in CLIPS.items():
        scenario = clip.partition("/")[0]
        for position in range(FRAMES_PER_CLIP):
            frame = f"{position:05d}"
            image = images / clip / f"{frame}.jpg"
            annotation = images / clip / f"{frame}.png"
            mask = folder / "masks" / clip / f"{frame}.png"
            parts = folder / "parts" / clip / f"{frame}.png"
            for path in (image, mask, parts):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.stack([shade, shade[:, ::-1], shade], axis=-1)).save(image)
            inside = np.zeros((48, 64), np.uint8)
            inside[10:40, 10 + position : 40 + position] = 1
            Image.fromarray(inside * 255).save(mask)
            Image.fromarray(np.roll(inside, 6, axis=1) * 255).save(annotation)  # the prediction is 6 pixels off
            coarse = Image.fromarray(inside[::8, ::8] * (1 + position % PARTS)).convert("P")
            coarse.putpalette(palette)
            coarse.save(parts)
            rows.append(
                (clip, scenario, frame, position, score - 0.01 * position, score + 0.01, str(image), str(annotation))
            )
        clips.append((clip, scenario, FRAMES_PER_CLIP, score, score, 1.0, 0.1, score, 1.0, float("nan")))
    columns = ["clip", "scenario", "frame", "position", "j", "f", "image", "mask"]
    frames = pd.DataFrame(rows, columns=columns)
    frames.loc[len(frames) - 1, "image"] = str(images / "gone.jpg")
    frames.to_parquet(folder / "frames.parquet")
    measures = ["j_mean", "j_recall", "j_decay", "f_mean", "f_recall", "f_decay"]
    columns = ["clip", "scenario", "frames", "jf_mean", *measures]
    pd.DataFrame(clips, columns=columns).to_parquet(folder / "clips.parquet")
    pd.DataFrame({"method": ["all foreground"], "jf_mean": [0.4]}).to_parquet(folder / "baselines.parquet")
    (folder / "scores.json").write_text(json.dumps(_scores()))


def _scores() -> dict[str, Any]:
    figures = {
        "jf_mean": 0.86,
        "j": {"mean": 0.85, "recall": 0.95, "decay": 0.02},
        "f": {"mean": 0.87, "recall": 0.97, "decay": None},
    }
    return figures | {
        "protocol": "mvps",
        "clips": len(CLIPS),
        "frames": len(CLIPS) * FRAMES_PER_CLIP,
        "intervals": {
            "level": 0.95,
            "resamples": 1000,
            "jf_mean": [0.4, 0.9],
            "j_mean": [0.5, 0.9],
            "f_mean": [0.3, 0.8],
        },
        "scenarios": [
            {"scenario": "dance", "clips": 1, "jf_mean": 0.4, "j_mean": 0.4, "f_mean": 0.4},
            {"scenario": "talk", "clips": 2, "jf_mean": 0.8, "j_mean": 0.8, "f_mean": 0.8},
        ],
        "all_frames": figures | {"jf_mean": 0.855},
        "baselines": [figures | {"method": "first mask, carried", "jf_mean": 0.6}],
        "speed": {
            "network_fps": 31.5,
            "end_to_end_fps": 21.5,
            "device": "Example(R) CPU, 2 threads",
            "precision": "fp32",
            "size": SIZE,
            "frames": 30,
        },
        "parts": {
            "share": [0.5, 0.3, 0.2],
            "match": {"true_parts": ["head"], "confusion": [[1.0]] * PARTS, "purity": 0.7, "nmi": 0.3},
        },
    }


def _write_export(folder: Path) -> None:
    """probability = sigmoid(mean over channels of (target - reference))."""
    pair = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
        for name in ("target", "reference")
    ]
    out = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch", 1, SIZE, SIZE])
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Sub", ["target", "reference"], ["difference"]),
        helper.make_node("ReduceMean", ["difference", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sigmoid", ["mean"], ["probability"]),
    ]
    graph = helper.make_graph(nodes, "tiny", pair, [out], initializer=[axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    path = folder / "pdnet.onnx"
    onnx.save(model, path)
    parity = {
        "frames": 12,
        "max_probability_difference": 1e-5,
        "mean_probability_difference": 1e-7,
        "mask_agreement": 1.0,
        "torch": {"jf_mean": 0.86},
        "onnx": {"jf_mean": 0.859},
        "opset": 18,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (folder / "parity.json").write_text(json.dumps(parity))
