"""A clip through the exported files is the same clip as through the network, on pictures of people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_profile import SIZE, decided_network

from pdnet.data.io import read_image
from pdnet.export.onnx import export_pair, export_streaming
from pdnet.inference.onnx_backend import OnnxModel, PairBackend, StreamingBackend
from pdnet.inference.session import Backend, PortraitSession
from pdnet.inference.torch_backend import TorchBackend

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a network of two references; an export takes seconds."""
    network = decided_network(references=2)
    folder = tmp_path_factory.mktemp("export")
    export_pair(network, folder / "pdnet.onnx", size=SIZE, opset=18, metadata={})
    export_streaming(network, folder, size=SIZE, opset=18, metadata={})
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


def test_half_precision_of_openvino_says_nearly_the_same(folder: Path, clip: list[np.ndarray]):
    pytest.importorskip("openvino")
    plain, half = (
        PortraitSession(StreamingBackend(folder, runtime="openvino", bf16=bf16), reference=clip[0])
        for bf16 in (False, True)
    )
    for frame in clip[:3]:
        assert np.abs(plain.step(frame).probability - half.step(frame).probability).mean() < 0.05


def test_the_reference_is_encoded_once_a_clip_and_no_frame_twice(folder: Path, clip: list[np.ndarray], monkeypatch):
    backend = StreamingBackend(folder)
    runs: list[str] = []

    def counted(path: Path, run: Any) -> Any:
        return lambda feeds: (runs.append(path.stem), run(feeds))[1]

    monkeypatch.setattr(backend, "_run", {path: counted(path, run) for path, run in backend._run.items()})
    session = PortraitSession(backend, reference=clip[0])
    for frame in clip:
        session.step(frame)
    assert runs == ["reference_encoder", *["segmenter"] * len(clip)]
