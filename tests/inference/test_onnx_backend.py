"""A clip through the exported files is the same clip as through the network, on pictures of people."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tiny_profile import SIZE, decided_network

from pdnet.data.io import read_image
from pdnet.devices import pick_dtype
from pdnet.errors import ExportError
from pdnet.export.onnx import Form, export_pair, export_streaming
from pdnet.inference.onnx_backend import OnnxModel, PairBackend, StreamingBackend
from pdnet.inference.session import Backend, PortraitSession
from pdnet.inference.torch_backend import TorchBackend

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a network of two references; an export takes seconds."""
    network = decided_network(references=2)
    folder = tmp_path_factory.mktemp("export")
    export_pair(network, folder / "pdnet.onnx", Form(SIZE, 18))
    export_streaming(network, folder, Form(SIZE, 18))
    return folder


@pytest.fixture(scope="module")
def clip(portraits: Path) -> list[np.ndarray]:
    frames = [read_image(path) for path in sorted((portraits / "Keyframes").rglob("*.jpg"))][:8]
    return [*frames, np.asarray(Image.fromarray(frames[3]).resize((50, 131)))]  # of another size than the reference


def opened(folder: Path, kind: str) -> Backend:
    if kind == "pair":
        return PairBackend(OnnxModel(folder / "pdnet.onnx"))
    pytest.importorskip(kind)
    return StreamingBackend(folder, runtime=kind)


@pytest.mark.parametrize("kind", ["pair", "onnxruntime", "openvino"])
def test_masks_are_the_same(folder: Path, clip: list[np.ndarray], kind: str):
    backend = opened(folder, kind)
    assert (backend.size, backend.references) == (SIZE, 2)
    ours = PortraitSession(TorchBackend(decided_network(references=2), size=SIZE), reference=clip[0])
    theirs = PortraitSession(backend, reference=clip[0])
    portrait = 0.0
    for frame in clip:
        wanted, found = ours.step(frame), theirs.step(frame)
        assert found.probability.shape == frame.shape[:2]
        assert found.probability.dtype == np.float32
        np.testing.assert_allclose(found.probability, wanted.probability, rtol=0, atol=1e-4)
        sure = np.abs(wanted.probability - 0.5) > 1e-4
        np.testing.assert_array_equal((found.probability >= 0.5)[sure], (wanted.probability >= 0.5)[sure])
        if kind == "pair":
            assert found.part_prob is found.saliency is None
        else:
            np.testing.assert_allclose(found.part_prob, wanted.part_prob, rtol=0, atol=1e-4)
            np.testing.assert_allclose(found.saliency, wanted.saliency, rtol=0, atol=1e-4)
        portrait += (wanted.probability >= 0.5).mean() / len(clip)
    assert 0.02 < portrait < 0.98


@pytest.mark.parametrize("kind", ["pair", "onnxruntime", "openvino"])
def test_a_batch_is_its_frames_one_by_one(folder: Path, clip: list[np.ndarray], kind: str):
    backend = opened(folder, kind)
    one, many = (PortraitSession(backend, reference=clip[0]) for _ in range(2))
    wanted = [one.step(frame).probability for frame in clip]
    found = [prediction.probability for prediction in many.step_batch(clip)]
    for theirs, ours in zip(found, wanted, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


def test_a_signal_after_openvinos_models_are_gone_is_handled(folder: Path):
    pytest.importorskip("openvino")
    program = (
        "import gc, os, signal, sys, pathlib\n"
        "from pdnet.inference.onnx_backend import StreamingBackend\n"
        "first, second = (StreamingBackend(pathlib.Path(sys.argv[1]), runtime='openvino') for _ in range(2))\n"
        "del first; gc.collect(); del second; gc.collect()\n"
        "try: os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_half_precision_of_openvino_says_nearly_the_same(folder: Path, clip: list[np.ndarray]):
    pytest.importorskip("openvino")
    plain, half = (
        PortraitSession(StreamingBackend(folder, runtime="openvino", bf16=bf16), reference=clip[0])
        for bf16 in (False, True)
    )
    for frame in clip[:3]:
        apart = np.abs(plain.step(frame).probability - half.step(frame).probability)
        assert apart.mean() < 0.05
        # Where the processor does not multiply bfloat16, OpenVINO may compute in float32 after all.
        assert apart.max() > 1e-4 or pick_dtype("auto", torch.device("cpu")) != torch.bfloat16


def test_the_reference_is_encoded_once_a_clip_and_no_frame_twice(folder: Path, clip: list[np.ndarray], monkeypatch):
    backend = StreamingBackend(folder)
    runs: list[str] = []

    def counted(name: str, graph: Any) -> Any:
        return graph._replace(run=lambda feeds: (runs.append(name), graph.run(feeds))[1])

    for name in ("encoder", "segmenter"):
        monkeypatch.setattr(backend, f"_{name}", counted(name, getattr(backend, f"_{name}")))
    session = PortraitSession(backend, reference=clip[0])
    for frame in clip:
        session.step(frame)
    assert runs == ["encoder", *["segmenter"] * len(clip)]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_what_is_no_streaming_pair_is_said(folder: Path, tmp_path: Path, runtime: str):
    pytest.importorskip(runtime)
    encoder, segmenter = tmp_path / "reference_encoder.onnx", tmp_path / "segmenter.onnx"
    with pytest.raises(ExportError, match=r"reference_encoder\.onnx: no such file; expected an ONNX file"):
        StreamingBackend(tmp_path, runtime=runtime)
    encoder.write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"reference_encoder\.onnx: cannot be opened by O"):
        StreamingBackend(tmp_path, runtime=runtime)
    encoder.write_bytes((folder / encoder.name).read_bytes())
    segmenter.write_bytes((folder / encoder.name).read_bytes())
    with pytest.raises(
        ExportError, match=r"segmenter\.onnx: inputs image and outputs key, value; expected image and key"
    ):
        StreamingBackend(tmp_path, runtime=runtime)
    model = onnx.load(folder / segmenter.name)
    del model.metadata_props[:]
    onnx.save(model, segmenter)
    with pytest.raises(ExportError, match=r"segmenter\.onnx: does not say its 'references'; expected a number"):
        StreamingBackend(tmp_path, runtime=runtime)


@pytest.mark.parametrize("kind", ["pair", "onnxruntime", "openvino"])
def test_one_backend_serves_clips_in_several_threads(folder: Path, clip: list[np.ndarray], kind: str):
    backend = opened(folder, kind)

    def masks(order: int) -> list[np.ndarray]:
        session = PortraitSession(backend, reference=clip[order])
        return [session.step(frame).probability for frame in clip[:: order or -1]]

    alone = [masks(order) for order in (0, 1)]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(4):
            together = list(threads.map(masks, (0, 1)))
            for wanted, found in zip(alone, together, strict=True):
                for one, other in zip(wanted, found, strict=True):
                    np.testing.assert_allclose(other, one, rtol=0, atol=1e-4)
