"""The network written a second time, for reading: plain functions, one part after the other.

Weights are a dict under the names of the released checkpoint, one set of weights a part. Nothing is shared with
`pdnet.model`; evaluation mode, because batch statistics are not computed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


class Parts(NamedTuple):
    """A decoupled frame: saliency logits (B, 1, h, w), and of each part logits (B, 1, h, w), features (B, C, h, w)."""

    saliency: Tensor
    logits: list[Tensor]
    features: list[Tensor]


class Result(NamedTuple):
    """Logits: final (B, 1, H, W), of the encoder's heads, and the decoupled frames."""

    logits: Tensor
    aux_target: list[Tensor]
    aux_references: list[list[Tensor]]
    target: Parts
    references: list[Parts]


def segment(
    weights: Weights, target: Tensor, references: list[Tensor], *, assembly: str = "residual", scaled: bool = False
) -> Result:
    """Segment (B, 3, H, W) given N references of the same shape."""
    levels_t = encode(weights, target)
    levels_ref = [encode(weights, reference) for reference in references]
    target_parts = decouple(weights, levels_t[0])
    reference_parts = [decouple(weights, levels[0]) for levels in levels_ref]
    motion = part_motion(weights, target_parts, reference_parts, scaled=scaled)
    fused = fuse(weights, levels_t[0], assemble(target_parts, motion, assembly=assembly))
    return Result(
        resize(conv(weights, "head", fused), target.shape[2:]),
        heads(weights, levels_t),
        [heads(weights, levels) for levels in levels_ref],
        target_parts,
        reference_parts,
    )


# --- 4.1: encoder ----------------------------------------------------------------------------------------------------


def encode(weights: Weights, image: Tensor) -> list[Tensor]:
    """The levels that the four heads look at, finest first; the first is A."""
    stride4, stride8, stride16, stride32 = backbone(weights, image)
    x = block(weights, "l5_adapt.0", "l5_adapt.1", stride32)
    up32 = resize(x, stride16.shape[2:])
    x = pair(weights, "fuse4", block(weights, "l4_adapt.0", "l4_adapt.1", stride16) * up32)
    up16 = resize(x, stride8.shape[2:])
    x = pair(weights, "fuse3", block(weights, "l3_adapt.0", "l3_adapt.1", stride8) * up16)
    up8 = resize(x, stride4.shape[2:])
    x = pair(weights, "fuse2", block(weights, "l2_adapt.0", "l2_adapt.1", stride4) * up8)
    return [x, up8, up16, up32]


def heads(weights: Weights, levels: list[Tensor]) -> list[Tensor]:
    return [conv(weights, f"head_{i}", level) for i, level in enumerate(levels, start=1)]


def backbone(weights: Weights, image: Tensor) -> list[Tensor]:
    """ResNet with basic or bottleneck blocks, the latter with the stride in the 3x3 convolution."""
    x = block(weights, "bkbone.conv1", "bkbone.bn1", image, stride=2)
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    stages = []
    for stage in range(1, 5):
        index = 0
        while f"bkbone.layer{stage}.{index}.conv1.weight" in weights:
            name = f"bkbone.layer{stage}.{index}"
            stride = 2 if stage > 1 and index == 0 else 1
            shortcut = x
            if f"{name}.downsample.0.weight" in weights:
                shortcut = norm(weights, f"{name}.downsample.1", conv(weights, f"{name}.downsample.0", x, stride))
            if f"{name}.conv3.weight" in weights:
                x = block(weights, f"{name}.conv1", f"{name}.bn1", x)
                x = block(weights, f"{name}.conv2", f"{name}.bn2", x, stride)
                x = norm(weights, f"{name}.bn3", conv(weights, f"{name}.conv3", x))
            else:
                x = block(weights, f"{name}.conv1", f"{name}.bn1", x, stride)
                x = norm(weights, f"{name}.bn2", conv(weights, f"{name}.conv2", x))
            x = (x + shortcut).relu()
            index += 1
        stages.append(x)
    return stages


# --- 4.2: inter-frame part-discriminated attention -------------------------------------------------------------------


def decouple(weights: Weights, appearance: Tensor) -> Parts:
    height, width = appearance.shape[2:]
    small = resize(appearance, (height // 4, width // 4))
    compressed = block(weights, "ipda.sup_adapt1.0", "ipda.sup_adapt1.1", small)
    compressed = block(weights, "ipda.sup_adapt2.0", "ipda.sup_adapt2.1", compressed)
    saliency = conv(weights, "ipda.sup_head", compressed)
    logits, features = [], []
    for k in range(count_parts(weights)):
        x = compressed
        for i in (1, 2, 3):
            x = block(weights, f"ipda.part_sep_conv.{k}.conv_{i}", f"ipda.part_sep_conv.{k}.bn_{i}", x)
        features.append(x)
        logits.append(conv(weights, "ipda.part_sep_pred", x))
    return Parts(saliency, logits, features)


def part_motion(weights: Weights, target: Parts, references: list[Parts], *, scaled: bool) -> list[Tensor]:
    """Q of each part: every position of the target looks at the same part at all positions of all references."""
    motion = []
    for k, target_features in enumerate(target.features):
        query = conv(weights, f"ipda.part_q_conv.{k}", target_features)  # (B, d, h, w)
        keys = [conv(weights, f"ipda.part_k_conv.{k}", reference.features[k]) for reference in references]
        values = [conv(weights, f"ipda.part_v_conv.{k}", reference.features[k]) for reference in references]
        samples = []
        for b in range(query.shape[0]):
            q = query[b].flatten(1)  # (d, h*w)
            key = torch.cat([x[b].flatten(1) for x in keys], dim=1)  # (d, N*h*w)
            value = torch.cat([x[b].flatten(1) for x in values], dim=1)
            products = q.T @ key  # (h*w, N*h*w)
            if scaled:
                products = products / q.shape[0] ** 0.5
            powers = (products - products.max(dim=1, keepdim=True).values).exp()
            attention = powers / powers.sum(dim=1, keepdim=True)
            samples.append((value @ attention.T).unflatten(1, query.shape[2:]))
        attended = torch.stack(samples)
        motion.append(block(weights, f"ipda.part_att_conv.{k}.0", f"ipda.part_att_conv.{k}.1", attended))
    return motion


def assemble(target: Parts, motion: list[Tensor], *, assembly: str) -> Tensor:
    """Equations (1) and (2); `residual` adds P to Q."""
    saliency = 1 / (1 + (-target.saliency).exp())
    powers = [logits.exp() for logits in target.logits]
    total = torch.zeros_like(motion[0])
    for k, q in enumerate(motion):
        part_mask = saliency * powers[k] / sum(powers)
        total = total + part_mask * (q + target.features[k] if assembly == "residual" else q)
    return total


# --- 4.3: spatiotemporal fusion --------------------------------------------------------------------------------------


def fuse(weights: Weights, appearance: Tensor, motion: Tensor) -> Tensor:
    name = "spatiotemporal_fusion"
    t = block(weights, f"{name}.conv_t", f"{name}.bn_t", resize(motion, appearance.shape[2:]))
    return pair(weights, name, appearance + t + appearance * conv(weights, f"{name}.conv_t1", t))


# --- layers ----------------------------------------------------------------------------------------------------------


def conv(weights: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = weights[f"{name}.weight"]
    return F.conv2d(x, weight, weights.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)


def norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    mean, variance, scale, shift = (
        weights[f"{name}.{leaf}"][:, None, None] for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def block(weights: Weights, conv_name: str, norm_name: str, x: Tensor, stride: int = 1) -> Tensor:
    return norm(weights, norm_name, conv(weights, conv_name, x, stride)).relu()


def pair(weights: Weights, name: str, x: Tensor) -> Tensor:
    x = block(weights, f"{name}.conv_1", f"{name}.bn_1", x)
    return block(weights, f"{name}.conv_2", f"{name}.bn_2", x)


def resize(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def count_parts(weights: Weights) -> int:
    return sum(name.startswith("ipda.part_q_conv.") for name in weights)


# --- from the project's names and grouped weights --------------------------------------------------------------------

_KIND = {"0": "conv", "1": "bn"}
_RULES = (
    (r"encoder\.backbone\.(.+)", lambda m: f"bkbone.{m[1]}"),
    (r"encoder\.laterals\.(\d)\.(.+)", lambda m: f"l{int(m[1]) + 2}_adapt.{m[2]}"),
    (
        r"encoder\.fusions\.(\d)\.(\d)\.(\d)\.(.+)",
        lambda m: f"fuse{int(m[1]) + 2}.{_KIND[m[3]]}_{int(m[2]) + 1}.{m[4]}",
    ),
    (r"encoder\.heads\.(\d)\.(.+)", lambda m: f"head_{int(m[1]) + 1}.{m[2]}"),
    (r"head\.(.+)", lambda m: f"head.{m[1]}"),
    (r"ipda\.compress\.(\d)\.(.+)", lambda m: f"ipda.sup_adapt{int(m[1]) + 1}.{m[2]}"),
    (r"ipda\.saliency_head\.(.+)", lambda m: f"ipda.sup_head.{m[1]}"),
    (r"ipda\.part_head\.(.+)", lambda m: f"ipda.part_sep_pred.{m[1]}"),
    (r"fusion\.expand\.(.+)", lambda m: f"spatiotemporal_fusion.conv_t.{m[1]}"),
    (r"fusion\.expand_norm\.(.+)", lambda m: f"spatiotemporal_fusion.bn_t.{m[1]}"),
    (r"fusion\.gate\.(.+)", lambda m: f"spatiotemporal_fusion.conv_t1.{m[1]}"),
    (r"fusion\.mix\.(\d)\.(\d)\.(.+)", lambda m: f"spatiotemporal_fusion.{_KIND[m[2]]}_{int(m[1]) + 1}.{m[3]}"),
)
_PART_RULES = (
    (r"ipda\.branches\.(\d)\.(\d)\.(.+)", lambda m, k: f"ipda.part_sep_conv.{k}.{_KIND[m[2]]}_{int(m[1]) + 1}.{m[3]}"),
    (r"ipda\.to_(query|key|value)\.(.+)", lambda m, k: f"ipda.part_{m[1][0]}_conv.{k}.{m[2]}"),
    (r"ipda\.from_attention\.(.+)", lambda m, k: f"ipda.part_att_conv.{k}.{m[1]}"),
)


def released_names(state: Weights, parts: int) -> dict[str, Tensor]:
    """The project's parameters under the released names: each part gets its slice of the grouped weights."""
    released: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, rename in _RULES:
            if match := re.fullmatch(pattern, name):
                released[rename(match)] = value
        for pattern, rename_part in _PART_RULES:
            if match := re.fullmatch(pattern, name):
                for k in range(parts):
                    share = value.shape[0] // parts if value.dim() else 0
                    released[rename_part(match, k)] = value[k * share : (k + 1) * share] if value.dim() else value
    return released
