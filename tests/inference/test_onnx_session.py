"""A clip through the ONNX file is the same clip as through the network, on pictures of people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_profile import SIZE, decided_network

from pdnet.data.io import read_image
from pdnet.export.onnx import export_pair
from pdnet.inference.onnx_session import OnnxModel, OnnxSession
from pdnet.inference.session import PortraitSession, prepare
from pdnet.model import PDNet

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[PDNet, OnnxModel]:
    """A network of two references; an export takes seconds."""
    network = decided_network(references=2)
    path = tmp_path_factory.mktemp("export") / "pdnet.onnx"
    export_pair(network, path, size=SIZE, opset=18, metadata={})
    return network, OnnxModel(path)


def test_masks_are_the_same(exported, portraits: Path):
    network, model = exported
    assert (model.size, model.references) == (SIZE, 2)
    clip = [read_image(path) for path in sorted((portraits / "Keyframes").rglob("*.jpg"))][:8]
    clip.append(np.asarray(Image.fromarray(clip[3]).resize((50, 131))))  # of another size than the reference
    ours = PortraitSession(prepare(network, torch.device("cpu")), size=SIZE, reference=clip[0])
    theirs = OnnxSession(model, reference=clip[0])
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
    network, model = exported
    frame = read_image(portraits / "Keyframes" / "480p" / "talk" / "a" / "00000.jpg")
    ours = PortraitSession(prepare(network, torch.device("cpu")), size=SIZE, reference=frame)
    theirs = OnnxSession(model, reference=frame)
    assert torch.equal(ours.to_input(frame), theirs.to_input(frame))
    assert theirs.reference().shape == (1, 2, 3, SIZE, SIZE)
