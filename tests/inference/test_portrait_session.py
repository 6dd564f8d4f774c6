"""A clip through a session is the network on (frame, reference) pairs, with the references encoded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_profile import SIZE, decided_network

from pdnet.data.index import index_clips
from pdnet.data.io import read_image
from pdnet.data.streams import PairDataset
from pdnet.inference.session import PortraitSession, ReferenceRing
from pdnet.inference.torch_backend import TorchBackend
from pdnet.model import PDNet
from pdnet.model.folding import fold_batch_norm


@pytest.fixture(scope="module")
def clip(portraits: Path) -> list[np.ndarray]:
    """Fourteen frames: the drawn clips one after the other."""
    frames = [read_image(path) for path in sorted((portraits / "Keyframes").rglob("*.jpg"))][:14]
    assert len(frames) == 14
    return frames


def as_input(frame: np.ndarray) -> torch.Tensor:
    """What the network is given, written down a second time."""
    small = np.asarray(Image.fromarray(frame).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) / 255
    normal = (small - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(normal.transpose(2, 0, 1)[None]).float()


def pair_by_pair(network: PDNet, clip: list[np.ndarray], *lags: int) -> list[np.ndarray]:
    """Probabilities by the network's own forward: each frame with the first and those `lags` before it."""
    inputs, found = [as_input(frame) for frame in clip], []
    for t, (frame, image) in enumerate(zip(clip, inputs, strict=True)):
        references = [inputs[0], *(inputs[max(0, t - lag)] for lag in lags)]
        with torch.no_grad():
            output, _ = network(image, torch.stack(references, dim=1) if lags else references[0])
            probability = torch.nn.functional.interpolate(
                output.logits.sigmoid(), frame.shape[:2], mode="bilinear", align_corners=True
            )
        found.append(probability[0, 0].numpy())
    return found


@pytest.mark.parametrize(
    ("architecture", "lags"),
    [
        ({}, ()),
        ({"assembly": "residual", "parts": 1}, ()),
        ({"ipda": False}, ()),
        ({"references": 2}, (5,)),
        ({"references": 3}, (5, 10)),
    ],
)
def test_a_clip_equals_the_network_pair_by_pair(clip, architecture, lags):
    network = decided_network(**architecture)
    wanted = pair_by_pair(network, clip, *lags)
    masks = np.array(wanted) >= 0.5
    assert 0.02 < masks.mean() < 0.98, "the case says nothing where all pixels are alike"
    session = PortraitSession(TorchBackend(network, size=SIZE), reference=clip[0])
    for frame, probability in zip(clip, wanted, strict=True):
        found = session.step(frame).probability
        assert found.shape == frame.shape[:2]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, probability, rtol=0, atol=1e-4)
        sure = np.abs(probability - 0.5) > 1e-4
        np.testing.assert_array_equal((found >= 0.5)[sure], (probability >= 0.5)[sure])


@pytest.mark.parametrize("references", [1, 2])
def test_the_reference_matters(clip, references):
    backend = TorchBackend(decided_network(references=references), size=SIZE)
    apart = [PortraitSession(backend, reference=first).step(clip[7]).probability for first in (clip[0], clip[13])]
    assert np.abs(apart[0] - apart[1]).max() > 1e-3


@pytest.mark.parametrize("references", [1, 3])
def test_nothing_of_a_clip_is_encoded_twice(clip, monkeypatch, references):
    backend = TorchBackend(decided_network(references=references), size=SIZE)
    network = backend.network
    calls = {"encode_reference": 0, "encoder": 0}

    def counted(name, function):
        def call(*arguments, **options):
            calls[name] += 1
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(network, "encode_reference", counted("encode_reference", network.encode_reference))
    network.encoder.register_forward_hook(counted("encoder", lambda *_: None))
    session = PortraitSession(backend, reference=clip[0])
    for frame in clip:
        session.step(frame)
    assert calls == {"encode_reference": 1, "encoder": 1 + len(clip)}


def test_infer_leaves_the_session_as_it_was(clip):
    backend = TorchBackend(decided_network(references=2), size=SIZE)
    timed, plain = (PortraitSession(backend, reference=clip[0]) for _ in range(2))
    for frame in clip[:8]:
        for _ in range(3):
            timed.infer(timed.to_input(clip[13]))
        np.testing.assert_array_equal(timed.step(frame).probability, plain.step(frame).probability)


@pytest.mark.parametrize("references", [1, 2, 3, 4])
def test_the_ring_gives_the_references_that_training_gave(portraits, references):
    frames = index_clips(portraits, splits=("train",))
    frames = frames[frames["clip"] == frames["clip"].iloc[0]]
    longer = frames.loc[frames.index.repeat(4)].assign(position=range(4 * len(frames)))  # 24 frames
    trained = PairDataset(longer, size=SIZE, seed=0, references=references).references_of
    ring = ReferenceRing(0, references)
    for t, wanted in enumerate(trained):
        assert ring.current() == wanted, t
        ring.push(t)
    assert trained[23] == [0, 18, 13, 8][:references]


def test_part_maps(clip):
    prediction = PortraitSession(TorchBackend(decided_network(), size=SIZE), reference=clip[0]).step(clip[3])
    parts, saliency = prediction.part_prob, prediction.saliency
    assert parts.shape == (3, *saliency.shape)
    assert parts.dtype == saliency.dtype == np.float32
    np.testing.assert_allclose(parts.sum(axis=0), 1, atol=1e-5)
    assert parts.std() > 1e-3
    assert 0 <= saliency.min() < saliency.max() <= 1


def test_without_ipda_there_are_no_part_maps(clip):
    session = PortraitSession(TorchBackend(decided_network(ipda=False), size=SIZE), reference=clip[0])
    prediction = session.step(clip[1])
    assert prediction.part_prob is None
    assert prediction.saliency is None


def test_frames_of_a_clip_may_differ_in_size(clip):
    session = PortraitSession(TorchBackend(decided_network(), size=SIZE), reference=clip[0])
    for height, width in [(72, 96), (30, 200), (131, 67), (1, 1)]:
        frame = np.asarray(Image.fromarray(clip[2]).resize((width, height)))
        assert session.step(frame).probability.shape == (height, width)


def test_half_precision_says_nearly_the_same(clip):
    plain = PortraitSession(TorchBackend(decided_network(), size=SIZE), reference=clip[0])
    half = PortraitSession(TorchBackend(decided_network(), size=SIZE, dtype=torch.bfloat16), reference=clip[0])
    for frame in clip[:3]:
        wanted, found = plain.step(frame), half.step(frame)
        assert found.probability.dtype == found.part_prob.dtype == np.float32
        assert np.abs(wanted.probability - found.probability).mean() < 0.05


@pytest.mark.parametrize("references", [1, 2, 3])
def test_a_batch_is_its_frames_one_by_one(clip, references):
    backend = TorchBackend(decided_network(references=references), size=SIZE)
    one, many = (PortraitSession(backend, reference=clip[0], lag=3) for _ in range(2))
    wanted = [one.step(frame) for frame in clip]
    found = [*many.step_batch(clip[:7]), *many.step_batch([]), *many.step_batch(clip[7:])]
    assert len(found) == len(wanted)
    for theirs, ours in zip(found, wanted, strict=True):
        np.testing.assert_allclose(theirs.probability, ours.probability, rtol=0, atol=1e-4)
        np.testing.assert_allclose(theirs.part_prob, ours.part_prob, rtol=0, atol=1e-4)


def test_several_references_stay_those_that_were_given(clip):
    network = decided_network(references=2)
    backend = TorchBackend(network, size=SIZE)
    session = PortraitSession(backend, reference=[clip[0], clip[5]])
    for frame in clip[:3]:
        with torch.no_grad():
            output, _ = network(as_input(frame), torch.stack([as_input(clip[0]), as_input(clip[5])], dim=1))
        wanted = torch.nn.functional.interpolate(
            output.logits.sigmoid(), frame.shape[:2], mode="bilinear", align_corners=True
        )
        np.testing.assert_allclose(session.step(frame).probability, wanted[0, 0].numpy(), rtol=0, atol=1e-4)


def test_the_network_is_left_as_it_was(clip):
    network = decided_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    TorchBackend(network, size=SIZE, dtype=torch.bfloat16)
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_no_batch_normalisation_is_left(backbone):
    folded = fold_batch_norm(decided_network(backbone=backbone))
    assert not [name for name, module in folded.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
