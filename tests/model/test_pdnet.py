"""What the network promises: five verbs that agree with each other, at any size, with any number of parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import images, small_network
from torch import nn

from pdnet.errors import ConfigError
from pdnet.inference.session import PortraitSession
from pdnet.inference.torch_backend import TorchBackend
from pdnet.model import ModelConfig, PDNet, ReferenceFeatures, resize


@pytest.fixture(scope="module")
def network() -> PDNet:
    return small_network()


class Calls:
    """Counts the forward passes of a module and the frames in them."""

    def __init__(self, module: nn.Module) -> None:
        self.passes = self.frames = 0
        self.hook = module.register_forward_hook(self.count)

    def count(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        self.passes += 1
        self.frames += inputs[0].shape[0]


@torch.no_grad()
def test_forward_is_encode_reference_then_segment(network):
    target, reference = images(2, 64, 48, seed=1), images(2, 64, 48, seed=2)
    output, encoded = network(target, reference, auxiliary=True)
    again = network.encode_reference(reference, auxiliary=True)
    parts = network.segment(target, again, auxiliary=True)
    assert torch.equal(output.logits, parts.logits)
    assert torch.equal(encoded.key, again.key)
    assert torch.equal(encoded.value, again.value)
    assert all(torch.equal(a, b) for a, b in zip(output.maps.aux_logits, parts.maps.aux_logits, strict=True))
    assert not torch.allclose(output.logits, network(target, target)[0].logits, atol=1e-3), "the reference is ignored"


@torch.no_grad()
def test_segment_alone_is_forward_with_itself(network):
    image = images(2, 64, 48)
    calls = Calls(network.encoder.backbone)
    alone = network.segment_alone(image, auxiliary=True)
    calls.hook.remove()
    assert (calls.passes, calls.frames) == (1, 2)
    output, _ = network(image, image, auxiliary=True)
    torch.testing.assert_close(alone.logits, output.logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(alone.maps.part_logits, output.maps.part_logits, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_references_encoded_one_by_one_equal_those_encoded_together(network):
    target, references = images(2, 64, 48, seed=1), images(2, 3, 64, 48, seed=2)
    together = network.encode_reference(references)
    singles = [network.encode_reference(references[:, n]) for n in range(3)]
    joined = ReferenceFeatures.concatenate(singles)
    torch.testing.assert_close(joined.key, together.key, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(joined.value, together.value, rtol=1e-5, atol=1e-5)
    logits = network.segment(target, together).logits
    torch.testing.assert_close(network.segment(target, joined).logits, logits, rtol=1e-5, atol=1e-5)
    # Attention sums over positions: the order of the references does not matter, each of them does.
    turned = ReferenceFeatures.concatenate(singles[::-1])
    torch.testing.assert_close(network.segment(target, turned).logits, logits, rtol=1e-5, atol=1e-5)
    fewer = ReferenceFeatures.concatenate(singles[:2])
    assert not torch.allclose(network.segment(target, fewer).logits, logits, atol=1e-3)


@torch.no_grad()
def test_a_target_is_the_reference_it_would_be_encoded_as(network):
    image, reference = images(2, 64, 48, seed=1), network.encode_reference(images(2, 64, 48, seed=2))
    output = network.segment(image, reference, as_reference=True)
    expected = network.encode_reference(image)
    torch.testing.assert_close(output.as_reference.key, expected.key, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(output.as_reference.value, expected.value, rtol=1e-6, atol=1e-6)
    plain = network.segment(image, reference)
    assert plain.as_reference is None
    assert torch.equal(plain.logits, output.logits)


@torch.no_grad()
def test_one_reference_serves_a_batch_of_targets(network):
    targets, reference = images(4, 64, 48, seed=1), images(1, 64, 48, seed=2)
    shared = network.segment(targets, network.encode_reference(reference)).logits
    repeated, _ = network(targets, reference.expand(4, -1, -1, -1))
    torch.testing.assert_close(shared, repeated.logits, rtol=1e-5, atol=1e-5)


def test_a_clip_encodes_its_reference_once():
    network = small_network().eval()
    frames = np.random.default_rng(0).integers(0, 256, (5, 40, 70, 3), dtype=np.uint8)
    backend = TorchBackend(network, size=64)
    calls = Calls(backend.network.encoder.backbone)
    session = PortraitSession(backend, reference=frames[0])
    predictions = [session.step(frame) for frame in frames]
    assert calls.passes == len(frames) + 1
    assert all(prediction.probability.shape == (40, 70) for prediction in predictions)
    # ... and computes what the pair graph computes.
    with torch.no_grad():
        output, _ = network(session.to_input(frames[3]), session.to_input(frames[0]))
        probability = F.interpolate(output.logits.sigmoid(), (40, 70), mode="bilinear", align_corners=True)
    np.testing.assert_allclose(predictions[3].probability, probability[0, 0].numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(predictions[3].part_prob.sum(axis=0), 1, rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_ipda_the_reference_is_ignored():
    network = small_network(ipda=False)
    assert not [name for name in network.state_dict() if name.startswith(("ipda.", "fusion."))]
    target = images(2, 64, 48, seed=1)
    output, encoded = network(target, images(2, 64, 48, seed=2))
    other, _ = network(target, images(2, 64, 48, seed=3))
    assert torch.equal(output.logits, other.logits)
    assert torch.equal(output.logits, network.segment_alone(target).logits)
    assert encoded.key.numel() == encoded.value.numel() == 0
    assert output.maps.saliency_logits is None
    assert output.maps.part_logits is None


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 50), (97, 65)])
@pytest.mark.parametrize("ipda", [True, False])
def test_shapes_at_any_size(height, width, ipda):
    network = small_network(ipda=ipda)
    output, encoded = network(images(2, height, width), images(2, 2, height, width), auxiliary=True)
    assert output.logits.shape == (2, 1, height, width)
    strides = [(-(-height // stride), -(-width // stride)) for stride in (4, 4, 8, 16)]
    assert [x.shape for x in output.maps.aux_logits] == [(2, 1, *size) for size in strides]
    assert [x.shape for x in encoded.maps.aux_logits] == [(4, 1, *size) for size in strides]
    if ipda:
        h, w = strides[0][0] // 4, strides[0][1] // 4
        assert output.maps.saliency_logits.shape == (2, 1, h, w)
        assert output.maps.part_logits.shape == (2, 3, h, w)
        assert encoded.maps.part_logits.shape == (4, 3, h, w)
        assert encoded.key.shape == encoded.value.shape == (2, 3, 2 * h * w, 4)


@torch.no_grad()
def test_auxiliary_maps_only_when_asked(network):
    image = images(1, 64, 64)
    calls = [Calls(head) for head in network.encoder.heads]
    output, encoded = network(image, image)
    assert output.maps.aux_logits == encoded.maps.aux_logits == network.segment_alone(image).maps.aux_logits == ()
    assert not any(call.passes for call in calls)
    output, encoded = network(image, image, auxiliary=True)
    assert len(output.maps.aux_logits) == len(encoded.maps.aux_logits) == 4
    for call in calls:
        call.hook.remove()


@torch.no_grad()
def test_encode_image_is_the_encoder_alone(network):
    image = images(2, 64, 48)
    calls = [Calls(module) for module in (network.ipda.compress, network.fusion, network.head)]
    maps = network.encode_image(image)
    assert not any(call.passes for call in calls)
    for call in calls:
        call.hook.remove()
    expected = network.segment_alone(image, auxiliary=True).maps.aux_logits
    assert all(torch.equal(a, b) for a, b in zip(maps.aux_logits, expected, strict=True))
    assert maps.saliency_logits is None
    assert maps.part_logits is None


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_all_backbones_run(backbone):
    network = PDNet(ModelConfig(backbone=backbone, width=8, part_width=4, attention_width=2, parts=2)).eval()
    output, _ = network(images(1, 64, 64, seed=1), images(1, 64, 64, seed=2))
    assert output.logits.shape == (1, 1, 64, 64)
    assert output.logits.isfinite().all()
    blocks = [len(getattr(network.encoder.backbone, f"layer{stage}")) for stage in range(1, 5)]
    depth = 2 + sum(blocks) * (2 if backbone in ("resnet18", "resnet34") else 3)
    assert f"resnet{depth}" == backbone


@pytest.mark.parametrize("ipda", [True, False])
def test_parameter_groups_partition_the_parameters(ipda):
    network = small_network(ipda=ipda)
    groups = network.parameter_groups()
    assert set(groups) == {"backbone", "rest"}
    ids = [id(parameter) for group in groups.values() for parameter in group]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in network.parameters()}
    named = {id(parameter): name for name, parameter in network.named_parameters()}
    assert all(named[id(parameter)].startswith("encoder.backbone.") for parameter in groups["backbone"])
    assert not any(named[id(parameter)].startswith("encoder.backbone.") for parameter in groups["rest"])


@torch.no_grad()
@pytest.mark.parametrize("parts", [1, 8])
def test_one_attention_call_whatever_the_parts(parts, monkeypatch):
    network = small_network(parts=parts)
    calls = []

    def counted(*args, **kwargs):
        calls.append(args[0].shape)
        return attention(*args, **kwargs)

    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    encoded = network.encode_reference(images(2, 3, 64, 64))
    assert calls == []
    network.segment(images(2, 64, 64), encoded)
    assert calls == [(2, parts, 16, 4)]


@pytest.mark.parametrize("key", ["width", "part_width", "attention_width", "parts", "references"])
def test_config_refuses_less_than_one(key):
    with pytest.raises(ConfigError, match=rf"^model\.{key}: 0, expected at least 1$"):
        ModelConfig(**{key: 0})


def test_same_seed_same_network():
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(PDNet(small_network().config).state_dict())
    first, second, other = states
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["ipda.to_query.weight"], other["ipda.to_query.weight"])
    assert not torch.equal(first["encoder.backbone.conv1.weight"], other["encoder.backbone.conv1.weight"])


def test_layers_of_one_channel_are_not_initialised_as_heads():
    def gain(layer: nn.Conv2d) -> float:
        return float(layer.weight.detach().std() * layer.weight[0].numel() ** 0.5)

    torch.manual_seed(0)
    narrow = PDNet(ModelConfig(backbone="resnet18", width=1, part_width=1, attention_width=1, parts=1))
    layer = narrow.encoder.laterals[3][0]
    assert layer.weight.shape == (1, 512, 1, 1)
    assert gain(layer) == pytest.approx(2**0.5, rel=0.1)
    wide = PDNet(ModelConfig(backbone="resnet18", width=64, part_width=64, attention_width=4, parts=2))
    for head in (wide.head, *wide.encoder.heads, wide.ipda.saliency_head, wide.ipda.part_head):
        assert gain(head) == pytest.approx(1, rel=0.15)


@torch.no_grad()
@pytest.mark.parametrize("size", [(5, 3), (2, 2)])
def test_resize_keeps_corners_and_is_linear_between(size):
    small = torch.tensor([[[[0.0, 1.0], [0.5, 0.25]]]])
    grown = resize(small, size)
    assert grown.shape == (1, 1, *size)
    assert grown[0, 0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0.0, 1.0, 0.5, 0.25]
    assert grown.mean().item() == pytest.approx(small.mean().item())


@torch.no_grad()
def test_new_heads_are_undecided_and_say_both_yes_and_no():
    """Neither sure of anything, nor so near 0 that the first steps decide the sign of every weight."""
    torch.manual_seed(0)
    network = PDNet(ModelConfig(backbone="resnet18"))
    heads = [network.head, *network.encoder.heads, network.ipda.saliency_head, network.ipda.part_head]
    for head in heads:
        fan_in = head.weight[0].numel()
        assert head.weight.detach().std().item() == pytest.approx(fan_in**-0.5, rel=0.25)
        assert 0.3 < (head.weight > 0).float().mean() < 0.7
        assert not head.bias.any()
