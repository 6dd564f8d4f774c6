"""Losses of a predicted portrait against its mask: weighted binary cross-entropy and L1 (paper: 4.4).

All work on logits and take one head or several: (B, A, H, W) logits of A heads against one (B, 1, H, W) mask give the
sum over the heads of what each head alone would give. Masks are soft: values in [0, 1].
"""

from __future__ import annotations

import math

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pdnet.losses.precision import full_precision


@full_precision
def weighted_bce(logits: Tensor, mask: Tensor, max_weight: float = math.inf) -> Tensor:
    """Binary cross-entropy, scaled by the inverse of the portrait's share of the pixels.

    With N pixels in the mask's batch, n1 of them at 0.5 or above:  min(N / (n1 + 1), max_weight) * mean BCE.
    Every pixel, portrait or not, has the same weight: small portraits count more, classes are not balanced. Processes
    that train together share the weight of their whole batch.

    Paper silent: the form is the released one. `max_weight` is ours: without it a batch with no portrait weighs N.

    Args:
        logits: (B, A, H, W), any real value.
        mask: (B, 1, H, W) in [0, 1].
        max_weight: upper limit of the weight; 50 is a portrait of 2 % of the pixels.

    Returns:
        Scalar >= 0, summed over the A heads.
    """
    pixels, positive = mask.numel(), (mask >= 0.5).sum(dtype=logits.dtype)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(positive)
        pixels *= dist.get_world_size()
    weight = (pixels / (positive + 1)).clamp(max=max_weight)
    heads = logits.shape[1]
    return weight * heads * F.binary_cross_entropy_with_logits(logits, mask.expand_as(logits))


@full_precision
def l1(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference of probability and mask.

    Args:
        logits: (B, A, H, W), any real value.
        mask: (B, 1, H, W) in [0, 1].

    Returns:
        Scalar >= 0, summed over the A heads.
    """
    heads = logits.shape[1]
    return heads * F.l1_loss(logits.sigmoid(), mask.expand_as(logits))


def segmentation_loss(logits: Tensor, mask: Tensor, *, l1_weight: float, max_bce_weight: float) -> Tensor:
    """Weighted BCE plus `l1_weight` times L1: the loss of every portrait output.

    Args:
        logits: (B, A, H, W), any real value.
        mask: (B, 1, H, W) in [0, 1].
        l1_weight: factor of the L1 term.
        max_bce_weight: upper limit of the weight in `weighted_bce`.

    Returns:
        Scalar >= 0, summed over the A heads.
    """
    return weighted_bce(logits, mask, max_bce_weight) + l1_weight * l1(logits, mask)
