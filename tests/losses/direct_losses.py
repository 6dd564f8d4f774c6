"""The losses written straight from their formulas: every channel at full size, one sample and part at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def direct_bce(logits: Tensor, mask: Tensor) -> Tensor:
    """(B, 1, H, W) each; the weight is N / (n1 + 1)."""
    prob = logits.sigmoid()
    weight = mask.numel() / (int((mask >= 0.5).sum()) + 1)
    return weight * -(mask * prob.log() + (1 - mask) * (1 - prob).log()).mean()


def direct_geometric(parts: Tensor) -> Tensor:
    B, K, H, W = parts.shape
    y, x = torch.meshgrid(2 * torch.arange(H) / H - 1, 2 * torch.arange(W) / W - 1, indexing="ij")
    y, x = y.to(parts), x.to(parts)
    total = parts.new_zeros(())
    for b in range(B):
        for k in range(K):
            q = parts[b, k] / (parts[b, k].sum() + 1e-7)
            centre_x, centre_y = (q * x).sum(), (q * y).sum()
            total = total + (q * ((x - centre_x) ** 2 + (y - centre_y) ** 2)).sum()
    return total / B


def direct_area(parts: Tensor) -> Tensor:
    B, K = parts.shape[:2]
    total = parts.new_zeros(())
    for b in range(B):
        areas = torch.stack([parts[b, k].sum() for k in range(K)])
        share = areas / max(float((areas**2).sum().sqrt()), 1e-12) if float(areas.sum()) == 0 else areas / areas.norm()
        total = total + ((share - share.mean()) ** 2).sum() / (K - 1)
    return total / B


def direct_semantic(part_prob: Tensor, portrait: Tensor, features: Tensor, basis: Tensor) -> Tensor:
    """With every channel of the features at the input's size."""
    size = part_prob.shape[2:]
    upsampled = F.interpolate(features, size=size, mode="bilinear", align_corners=True)  # (B, C, H, W)
    painted = torch.einsum("bkhw,kc->bchw", portrait * part_prob, basis)
    return (painted - portrait * upsampled).square().mean()


def direct_orthonormal(basis: Tensor) -> Tensor:
    total = basis.new_zeros(())
    for i, left in enumerate(basis):
        for j, right in enumerate(basis):
            cosine = (left @ right) / ((left @ left + 1e-7).sqrt() * (right @ right + 1e-7).sqrt())
            total = total + (cosine - float(i == j)) ** 2
    return total


def direct_part_losses(
    part_logits: Tensor, saliency_logits: Tensor, mask: Tensor, features: Tensor, basis: Tensor
) -> dict[str, Tensor]:
    part_prob = part_logits.exp() / part_logits.exp().sum(dim=1, keepdim=True)
    branches = []
    for portrait in (mask, saliency_logits.sigmoid()):
        parts = portrait * part_prob
        semantic = direct_semantic(part_prob, portrait, features, basis)
        branches.append((direct_geometric(parts), direct_area(parts), semantic))
    means = [(g + s) / 2 for g, s in zip(*branches, strict=True)]
    return dict(zip(("geometric", "area", "semantic"), means, strict=True)) | {"orthonormal": direct_orthonormal(basis)}
