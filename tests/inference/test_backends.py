"""Which backend is opened, and what is said of it."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch
from fake_tensorrt import FakeTensorRT, stand_in
from tiny_profile import SIZE, decided_network

from pdnet.errors import CheckpointError, ConfigError, DataError, UnavailableError
from pdnet.export.convert import to_half
from pdnet.export.onnx import Form, export_streaming
from pdnet.export.tensorrt import build_engine
from pdnet.files import file_digest
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
    export_streaming(decided_network(), folder, Form(SIZE, 18))
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
        ({"name": "onnxruntime", "precision": "bf16"}, ConfigError, "computes graphs in fp32, fp16, int8, not in bf16"),
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


def test_a_pipelines_folder_has_weights_and_graphs_of_one_training(release, tmp_path, caplog):
    for name, suffix in (("train", ".safetensors"), ("export", ".onnx")):
        (tmp_path / name).mkdir()
        part(release, tmp_path / name, suffix)
    run = tmp_path / "export" / "run.json"
    digest = file_digest(release / "model.safetensors")
    run.write_text(json.dumps({"parents": {"evaluate": {"model_sha256": digest}}}))
    with caplog.at_level(logging.INFO, "pdnet.inference"):
        assert open_backend(tmp_path, device="cpu", precision="fp32").name == "OpenVINO, fp32"
        run.write_text(json.dumps({"parents": {"evaluate": {"model_sha256": "0" * 64}}}))
        assert open_backend(tmp_path, device="cpu", precision="fp32").name == "torch, fp32"
    wanted = f"{tmp_path}/export: graphs of another training than that in {tmp_path}/train; left out"
    assert wanted in caplog.messages


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_graphs_in_half_precision_are_named_by_what_is_computed(release, tmp_path, runtime):
    (tmp_path / "fp16").mkdir()
    for name in ("reference_encoder.onnx", "segmenter.onnx"):
        to_half(release / name, tmp_path / "fp16" / name)
    part(release, tmp_path, ".onnx")
    name = {"onnxruntime": "ONNX Runtime, fp16", "openvino": "OpenVINO, fp32 from fp16"}[runtime]
    for folder in (tmp_path, tmp_path / "fp16"):
        assert open_backend(folder, name=runtime, device="cpu", precision="fp16").name == name
    with pytest.raises(ConfigError, match=r"fp16 are in fp16, not in fp32; expected auto$"):
        open_backend(tmp_path / "fp16", name=runtime, device="cpu", precision="fp32")
    (tmp_path / "model.safetensors").hardlink_to(release / "model.safetensors")
    assert open_backend(tmp_path, device="cpu", precision="fp16").name == "OpenVINO, fp32 from fp16"
    shutil.rmtree(tmp_path / "fp16")
    assert open_backend(tmp_path, device="cpu", precision="fp16").name == "torch, fp16"
    with pytest.raises(DataError, match=r"fp16: no such folder; `pdnet export onnx` writes it if"):
        open_backend(tmp_path, name=runtime, device="cpu", precision="fp16")


# TensorRT: a GPU whose memory is the CPU's, with a library that follows the documented interface


@pytest.fixture
def gpu(machine, monkeypatch):
    """Let the machine have a GPU and TensorRT."""
    machine(openvino=False, bf16=False)
    trt = stand_in(monkeypatch)
    monkeypatch.setattr(backends, "pick_device", lambda name: torch.device("cpu" if name == "cpu" else "cuda"))

    def on_cpu(kind):
        def opened(*arguments, **options):
            given = [torch.device("cpu") if isinstance(each, torch.device) else each for each in arguments]
            return kind(*given, **{key: value for key, value in options.items() if key != "device"})

        return opened

    for name in ("TorchBackend", "TensorRTBackend"):
        monkeypatch.setattr(backends, name, on_cpu(getattr(backends, name)))
    return trt


@pytest.fixture
def engines(release, gpu, tmp_path) -> Path:
    """The release with engines, which say that they compute in fp16."""
    folder = tmp_path / "release"
    shutil.copytree(release, folder)
    (folder / "tensorrt").mkdir()
    for name in ("reference_encoder", "segmenter"):
        build_engine(gpu, folder / f"{name}.onnx", folder / "tensorrt" / f"{name}.engine", precision="fp16")
    (folder / "tensorrt" / "parity.json").write_text(json.dumps({"precision": "fp16"}))
    return folder


def test_on_a_gpu_auto_takes_engines_first(engines, caplog):
    with caplog.at_level(logging.INFO, "pdnet.inference"):
        backend = open_backend(engines)
        alone = open_backend(engines / "tensorrt", precision="fp16")
    assert caplog.messages == ["runs by TensorRT, fp16"] * 2
    assert (backend.size, backend.references) == (alone.size, alone.references) == (SIZE, 1)
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    by_torch = open_backend(engines, name="torch", device="cpu", precision="fp32")
    found, wanted = (each.segment(image, [each.encode(image)]).probability for each in (backend, by_torch))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "precision", "why"),
    [
        ("library", "auto", "a TensorRT engine cannot be run here: needs the package 'tensorrt' (import of "
         "tensorrt halted; None in sys.modules)"),
        ("engines", "auto", "{0}: holds no reference_encoder.engine and segmenter.engine; "
         "`pdnet export tensorrt` builds them"),
        ("nothing", "fp32", "precision: the engines of {0}/tensorrt compute in fp16, not fp32"),
        ("version", "auto", "{0}/tensorrt/reference_encoder.engine: TensorRT 10.9.0 cannot open it; its messages above "
         "say why. An engine is of one version and one kind of GPU: `pdnet export tensorrt` builds another"),
    ],
)  # fmt: skip
def test_auto_says_why_it_is_not_tensorrt(engines, monkeypatch, caplog, change, precision, why):
    if change == "library":
        monkeypatch.setitem(sys.modules, "tensorrt", None)
    elif change == "engines":
        shutil.rmtree(engines / "tensorrt")
    elif change == "version":
        monkeypatch.setattr(backends, "require_tensorrt", lambda *_, **__: FakeTensorRT(version="10.9.0"))
    with caplog.at_level(logging.INFO, "pdnet.inference"):
        open_backend(engines, precision=precision)
    assert caplog.messages == [f"runs by torch, fp32 (not by TensorRT: {why.format(engines)})"]


def test_graphs_alone_run_on_the_cpu_of_a_gpu_machine(engines, caplog):
    shutil.rmtree(engines / "tensorrt")
    (engines / "model.safetensors").unlink()
    with caplog.at_level(logging.INFO, "pdnet.inference"):
        backend = open_backend(engines, precision="fp32")
    assert backend.name in ("OpenVINO, fp32", "ONNX Runtime, fp32")
    assert caplog.messages[0].startswith(f"runs by {backend.name} (not by TensorRT: {engines}: holds no ")
    with pytest.raises(UnavailableError, match="runs on the CPU here, not on cuda"):
        open_backend(engines, device="cuda")


def test_engines_alone_say_what_keeps_them_from_running(engines, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UnavailableError, match="a TensorRT engine cannot be run here: needs the package 'tensorrt'"):
        open_backend(engines / "tensorrt")


def test_what_tensorrt_cannot_do_is_said(engines, release):
    assert open_backend(engines, name="tensorrt").name == "TensorRT, fp16"
    with pytest.raises(ConfigError, match="compute in fp16, not bf16"):
        open_backend(engines, name="tensorrt", precision="bf16")
    with pytest.raises(DataError, match=r"holds no reference_encoder\.engine and segmenter\.engine"):
        open_backend(release, name="tensorrt")
    with pytest.raises(UnavailableError, match=r"needs a CUDA device \(the device is cpu\)"):
        open_backend(engines, name="tensorrt", device="cpu")
    (engines / "tensorrt" / "parity.json").unlink()
    with pytest.raises(DataError, match=r"tensorrt/parity\.json"):
        open_backend(engines, name="tensorrt")


@pytest.mark.slow  # a minute of C++
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_gives_the_same(release):
    compiled = open_backend(release, device="cpu", precision="fp32", compiled=True)
    assert (compiled.name, compiled.size) == ("torch, fp32, compiled", SIZE)
    plain = open_backend(release, name="torch", device="cpu", precision="fp32")
    frames = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    features = plain.encode(frames[:1])
    torch.testing.assert_close(compiled.encode(frames[:1]), features)
    expected, found = (each.segment(frames[1:], [features]).probability for each in (plain, compiled))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_compiled(release, monkeypatch):
    with pytest.raises(ConfigError, match=r"^backend: 'openvino' is not compiled by torch; expected torch$"):
        open_backend(release, name="openvino", device="cpu", compiled=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UnavailableError, match=r"^torch.compile needs a C\+\+ compiler on the CPU; found neither "):
        open_backend(release, device="cpu", compiled=True)
