"""Which backend is opened, and what is said of it."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest
import torch
from tiny_profile import SIZE, decided_network

from pdnet.errors import CheckpointError, ConfigError, DataError, UnavailableError
from pdnet.export.onnx import export_streaming
from pdnet.inference import backends
from pdnet.inference.backends import open_backend
from pdnet.weights import save_model

pytest.importorskip("onnxruntime")

INSTALL = "OpenVINO would be faster: pip install 'pdnet[openvino]'"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights and graphs."""
    folder = tmp_path_factory.mktemp("release")
    save_model(folder / "model.safetensors", decided_network(), {"size": SIZE})
    export_streaming(decided_network(), folder, size=SIZE, opset=18, metadata={})
    return folder


def part(release: Path, folder: Path, *suffixes: str) -> Path:
    """A folder with some of its files."""
    for path in release.iterdir():
        if path.suffix in suffixes:
            (folder / path.name).hardlink_to(path)
    return folder


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Let the machine have OpenVINO and bfloat16, or not."""

    def make(*, openvino: bool, bf16: bool) -> None:
        found = importlib.util.find_spec
        spec = found("json") if openvino else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "openvino" else found(name))
        fast = torch.bfloat16 if bf16 else torch.float32
        monkeypatch.setattr(backends, "pick_dtype", lambda *_: fast)

    return make


@pytest.mark.parametrize(
    ("kept", "openvino", "bf16", "said"),
    [
        ((".safetensors", ".onnx"), True, True, "runs by OpenVINO, bf16"),
        ((".onnx",), True, False, "runs by OpenVINO, fp32"),
        ((".onnx",), False, True, f"runs by ONNX Runtime, fp32 ({INSTALL})"),
        (
            (".safetensors", ".onnx"), False, True,
            f"runs by torch, bf16 ({INSTALL})",
        ),
        (
            (".safetensors", ".onnx"), False, False,
            f"runs by ONNX Runtime, fp32 ({INSTALL})",
        ),
        ((".safetensors",), True, False, "runs by torch, fp32 (OpenVINO would be faster: `pdnet export onnx`)"),
    ],
)  # fmt: skip
def test_auto_takes_the_fastest_and_says_so(release, tmp_path, machine, caplog, kept, openvino, bf16, said):
    if openvino:
        pytest.importorskip("openvino")
    machine(openvino=openvino, bf16=bf16)
    with caplog.at_level(logging.INFO, "pdnet.inference"):
        backend = open_backend(part(release, tmp_path, *kept), device="cpu")
    assert caplog.messages == [said]
    assert (backend.size, backend.references) == (SIZE, 1)


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"name": "tensorflow"}, ConfigError, "backend: 'tensorflow', expected one of auto, torch"),
        ({"precision": "int4"}, ConfigError, "precision: 'int4', expected one of auto, fp32, bf16, fp16"),
        ({"name": "onnxruntime", "precision": "bf16"}, ConfigError, "computes these graphs in fp32, not bf16"),
        ({"name": "openvino", "device": "cuda"}, UnavailableError, "cuda"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(release, options, error, reason):
    with pytest.raises(error, match=reason):
        open_backend(release, **options)


def test_what_is_not_there_is_said(release, tmp_path):
    with pytest.raises(DataError, match=r"holds neither model\.safetensors nor reference_encoder\.onnx and segmenter"):
        open_backend(tmp_path)
    with pytest.raises(DataError, match="runs exported graphs; expected a folder of `pdnet export onnx`"):
        open_backend(release / "model.safetensors", name="onnxruntime")
    with pytest.raises(DataError, match=r"holds no model\.safetensors, which torch needs"):
        open_backend(part(release, tmp_path, ".onnx"), name="torch")
    save_model(tmp_path / "model.safetensors", decided_network(), {})
    with pytest.raises(CheckpointError, match="does not say the size of the network's input"):
        open_backend(tmp_path / "model.safetensors")
