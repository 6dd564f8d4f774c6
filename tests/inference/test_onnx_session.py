"""A clip through the ONNX files is the same clip as through the network, on pictures of people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_profile import SIZE, decided_network

from pdnet.data.io import read_image
from pdnet.export.onnx import REFERENCE_ENCODER, SEGMENTER, export_pair, export_streaming
from pdnet.inference.onnx_session import OnnxModel, OnnxSession, StreamingModel, StreamingSession
from pdnet.inference.session import PortraitSession, prepare
from pdnet.model import PDNet

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[PDNet, OnnxModel, StreamingModel]:
    """A network of two references; an export takes seconds."""
    network = decided_network(references=2)
    folder = tmp_path_factory.mktemp("export")
    export_pair(network, folder / "pdnet.onnx", size=SIZE, opset=18, metadata={})
    export_streaming(network, folder, size=SIZE, opset=18, metadata={})
    streaming = StreamingModel(folder / REFERENCE_ENCODER, folder / SEGMENTER)
    return network, OnnxModel(folder / "pdnet.onnx"), streaming


@pytest.mark.parametrize("streams", [False, True], ids=["pair", "streaming"])
def test_masks_are_the_same(exported, portraits: Path, streams: bool):
    network, pair, streaming = exported
    model = streaming if streams else pair
    assert (model.size, model.references) == (SIZE, 2)
    clip = [read_image(path) for path in sorted((portraits / "Keyframes").rglob("*.jpg"))][:8]
    clip.append(np.asarray(Image.fromarray(clip[3]).resize((50, 131))))  # of another size than the reference
    ours = PortraitSession(prepare(network, torch.device("cpu")), size=SIZE, reference=clip[0])
    theirs = StreamingSession(streaming, reference=clip[0]) if streams else OnnxSession(pair, reference=clip[0])
    portrait = 0.0
    for frame in clip:
        wanted, found = ours.step(frame), theirs.step(frame)
        assert found.probability.shape == frame.shape[:2]
        assert found.probability.dtype == np.float32
        np.testing.assert_allclose(found.probability, wanted.probability, rtol=0, atol=1e-4)
        sure = np.abs(wanted.probability - 0.5) > 1e-4
        np.testing.assert_array_equal((found.probability >= 0.5)[sure], (wanted.probability >= 0.5)[sure])
        assert found.part_prob is None
        assert found.saliency is None
        portrait += (wanted.probability >= 0.5).mean() / len(clip)
    assert 0.02 < portrait < 0.98


def test_the_input_is_that_of_the_network(exported, portraits: Path):
    network, model, streaming = exported
    frame = read_image(portraits / "Keyframes" / "480p" / "talk" / "a" / "00000.jpg")
    ours = PortraitSession(prepare(network, torch.device("cpu")), size=SIZE, reference=frame)
    theirs = OnnxSession(model, reference=frame)
    assert torch.equal(ours.to_input(frame), theirs.to_input(frame))
    assert theirs.reference().shape == (1, 2, 3, SIZE, SIZE)
    assert torch.equal(ours.to_input(frame), StreamingSession(streaming, reference=frame).to_input(frame))


def test_the_reference_is_encoded_once_a_clip_and_no_frame_twice(exported, portraits: Path, monkeypatch):
    _, _, streaming = exported
    clip = [read_image(path) for path in sorted((portraits / "Keyframes" / "480p" / "talk" / "a").glob("*.jpg"))]
    runs: list[str] = []
    for name in ("encoder", "segmenter"):

        class Counted:
            def __init__(self, name: str, session: Any) -> None:
                self.name, self.session = name, session

            def run(self, *arguments: Any) -> Any:
                runs.append(self.name)
                return self.session.run(*arguments)

        monkeypatch.setattr(streaming, name, Counted(name, getattr(streaming, name)))
    session = StreamingSession(streaming, reference=clip[0])
    for frame in clip:
        session.step(frame)
    assert runs == ["encoder", *["segmenter"] * len(clip)]
    assert len(clip) == 6
