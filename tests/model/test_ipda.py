"""The network with parts as a tensor axis computes what the loop over parts computes."""

from __future__ import annotations

import loop_reference as loop
import pytest
import torch
from small_networks import SMALL, images, randomise, small_network
from torch import Tensor, nn

from pdnet.model.fusion import SpatiotemporalFusion
from pdnet.model.ipda import IPDA

BATCH = 3
WIDTH, PART_WIDTH, ATTENTION_WIDTH = (SMALL[key] for key in ("width", "part_width", "attention_width"))
#: of the appearance features of images of 97x65, 64x96 and 33x50
SIZES = ((25, 17), (16, 24), (9, 13))


def ipda_and_fusion(parts: int, assembly: str = "paper", attention_scale: str = "none") -> nn.ModuleDict:
    modules = nn.ModuleDict(
        {
            "ipda": IPDA(
                width=WIDTH,
                part_width=PART_WIDTH,
                attention_width=ATTENTION_WIDTH,
                parts=parts,
                assembly=assembly,
                attention_scale=attention_scale,
            ),
            "fusion": SpatiotemporalFusion(WIDTH, PART_WIDTH),
        }
    )
    randomise(modules, seed=parts)
    return modules.eval()


def appearances(size: tuple[int, int], references: int) -> tuple[Tensor, Tensor]:
    """A of the targets (B, C, H/4, W/4) and of their references (B, N, C, H/4, W/4), not negative as after a ReLU."""
    generator = torch.Generator().manual_seed(references)
    draw = torch.randn((BATCH, 1 + references, WIDTH, *size), generator=generator).relu()
    return draw[:, 0], draw[:, 1:]


def by_axis(modules: nn.ModuleDict, a_t: Tensor, a_ref: Tensor) -> tuple[Tensor, ...]:
    ipda, fusion = modules["ipda"], modules["fusion"]
    target = ipda.decouple(a_t)
    key, value = ipda.key_value(ipda.decouple(a_ref.flatten(0, 1)), a_ref.shape[1])
    motion = ipda.assemble(target, ipda.correlate(target, key, value))
    return target.saliency_logits, target.part_logits, motion, fusion(a_t, motion)


def by_loop(weights: loop.Weights, a_t: Tensor, a_ref: Tensor, assembly: str, scaled: bool) -> tuple[Tensor, ...]:
    target = loop.decouple(weights, a_t)
    references = [loop.decouple(weights, a_ref[:, n]) for n in range(a_ref.shape[1])]
    motion = loop.assemble(target, loop.part_motion(weights, target, references, scaled=scaled), assembly=assembly)
    return target.saliency, torch.cat(target.logits, dim=1), motion, loop.fuse(weights, a_t, motion)


@pytest.mark.parametrize("attention_scale", ["none", "sqrt_dim"])
@pytest.mark.parametrize("assembly", ["paper", "residual"])
@pytest.mark.parametrize("parts", [1, 3, 5, 8])
def test_axis_equals_loop(parts, assembly, attention_scale):
    modules = ipda_and_fusion(parts, assembly, attention_scale)
    weights = loop.released_names(modules.state_dict(), parts)
    for size in SIZES:
        for references in (1, 2, 4):
            a_t, a_ref = appearances(size, references)
            with torch.no_grad():
                found = by_axis(modules, a_t, a_ref)
                wanted = by_loop(weights, a_t, a_ref, assembly, attention_scale == "sqrt_dim")
            for name, x, y in zip(("saliency", "parts", "motion", "fused"), found, wanted, strict=True):
                assert y.abs().max() > 0.1, "the case says nothing where everything is near 0"
                assert (x - y).abs().max() <= 1e-5, (name, size, references)


def test_gradients_equal_those_of_the_loop():
    parts, references = 3, 2
    modules = ipda_and_fusion(parts, "residual", "sqrt_dim")
    a_t, a_ref = (x.requires_grad_() for x in appearances((16, 24), references))
    leaves = {"a_t": a_t, "a_ref": a_ref, **dict(modules.named_parameters())}
    weights = loop.released_names(dict(modules.named_parameters()) | dict(modules.named_buffers()), parts)
    sides = by_axis(modules, a_t, a_ref), by_loop(weights, a_t, a_ref, "residual", True)
    generator = torch.Generator().manual_seed(0)
    gradients = []
    directions = [torch.randn(x.shape, generator=generator) / x.numel() ** 0.5 for x in sides[0]]
    for outputs in sides:
        total = sum((x * direction).sum() for x, direction in zip(outputs, directions, strict=True))
        gradients.append(torch.autograd.grad(total, list(leaves.values())))
    for name, found, wanted in zip(leaves, *gradients, strict=True):
        assert wanted.abs().max() > 0, name
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4, msg=lambda m, at=name: f"{at}: {m}")


@pytest.mark.parametrize(
    ("parts", "references", "size", "assembly", "attention_scale"),
    [(5, 1, (97, 65), "paper", "none"), (1, 2, (64, 96), "residual", "none"), (3, 4, (97, 65), "paper", "sqrt_dim")],
)
def test_whole_network_equals_plain_functions(parts, references, size, assembly, attention_scale):
    network = small_network(parts=parts, references=references, assembly=assembly, attention_scale=attention_scale)
    # In float64: how far rounding takes two float32 networks apart depends on the weights, not on what they compute.
    network = network.double()
    weights = loop.released_names(network.state_dict(), parts)
    frames = images(2, 1 + references, *size).double()
    with torch.no_grad():
        output, encoded = network(frames[:, 0], frames[:, 1:], auxiliary=True)
        wanted = loop.segment(
            weights,
            frames[:, 0],
            [frames[:, n] for n in range(1, 1 + references)],
            assembly=assembly,
            scaled=attention_scale == "sqrt_dim",
        )
    pairs = [
        (output.logits, wanted.logits),
        (output.maps.saliency_logits, wanted.target.saliency),
        (output.maps.part_logits, torch.cat(wanted.target.logits, dim=1)),
        *zip(output.maps.aux_logits, wanted.aux_target, strict=True),
        # batch axis B*N: the references of a sample lie side by side
        (encoded.maps.part_logits.unflatten(0, (2, references)), by_reference(wanted.references)),
        (
            encoded.maps.aux_logits[0].unflatten(0, (2, references)),
            torch.stack([levels[0] for levels in wanted.aux_references], dim=1),
        ),
    ]
    for found, expected in pairs:
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def by_reference(references: list[loop.Parts]) -> Tensor:
    """Part logits (B, N, K, h, w)."""
    return torch.stack([torch.cat(reference.logits, dim=1) for reference in references], dim=1)
