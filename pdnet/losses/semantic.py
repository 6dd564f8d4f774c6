"""Self-supervision of the parts by what they show: semantic consistency with frozen features (paper: 4.4, 5.1).

With portrait Y, part probabilities D, parts X^k = Y D^k, frozen features V upsampled to the input size, part basis W:

    L_sem = mean over b, pixels, channels of ( sum_k X^k W_k - Y V )^2  =  mean of Y^2 ( sum_k D^k W_k - V )^2

Per pixel and with M = Y^2 that is  M [ D^T (W W^T) D - 2 D^T (W V) + |V|^2 ].  Upsampling U is linear, so that

    sum_p M D^T (W W^T) D  =  < W W^T, sum_p M D D^T >              K x K numbers
    sum_p M D^T (W U V)    =  < U^T (M D), W V >                    K maps at feature resolution
    |U V|^2                =  products of neighbouring feature vectors, upsampled   (`_upsampled_energy`)

and no tensor with the C channels of V ever has the input's size. The loss is linear in M: its mean over portraits is
the loss of the mean of their squares, so both branches of eq. (6) cost one evaluation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pdnet.losses.precision import full_precision
from pdnet.model.backbone import Backbone, load_backbone_weights

#: Added under the root of a basis row's norm (released choice).
ROW_FLOOR = 1e-7


@full_precision
def semantic_consistency(part_prob: Tensor, portrait_squared: Tensor, features: Tensor, basis: Tensor) -> Tensor:
    """L_sem: how well the parts, each painted with its own row of the basis, repaint the features of the portrait.

    Paper: 4.4, as in SCOPS. Paper silent: raw features, upsampled bilinearly with aligned corners to the input size,
    mean over all elements (released choices).

    Args:
        part_prob: (B, K, H, W), D.
        portrait_squared: (B, 1, H, W) >= 0, Y^2, or a weighted sum over several portraits Y. Where Y is predicted,
            its gradient pulls Y to 0.
        features: (B, C, h, w), V, constant: no gradient reaches them.
        basis: (K, C) >= 0, W.

    Returns:
        Scalar >= 0, up to rounding.
    """
    features = features.detach()
    channels, h, w = features.shape[1:]
    rows = _interpolation_matrix(h, part_prob.shape[2], like=features)  # (H, h)
    columns = _interpolation_matrix(w, part_prob.shape[3], like=features)  # (W, w)

    weighted = portrait_squared * part_prob  # (B, K, H, W), M D
    moments = weighted.flatten(2) @ part_prob.flatten(2).mT  # (B, K, K)
    quadratic = (moments * (basis @ basis.mT)).sum()
    gathered = rows.mT @ (weighted @ columns)  # (B, K, h, w)
    cross = (gathered * torch.einsum("kc,bchw->bkhw", basis, features)).sum()
    constant = (portrait_squared * _upsampled_energy(features, rows, columns)).sum()
    return (quadratic - 2 * cross + constant) / (portrait_squared.numel() * channels)


def _interpolation_matrix(length: int, size: int, like: Tensor) -> Tensor:
    """The (size, length) matrix of linear interpolation with aligned corners: one or two neighbouring weights a row."""
    impulses = torch.eye(length, dtype=like.dtype, device=like.device)[None]  # (1, length, length)
    return F.interpolate(impulses, size=size, mode="linear", align_corners=True)[0].T


def _upsampled_energy(features: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Squared length, per pixel, of the upsampled features: exact, and without upsampling them.

    A pixel is a mixture of the corners of its cell, v = sum_ab r_a c_b v_ab, so |v|^2 is a sum over pairs of corners.
    Along one axis a pair is one row twice, with weight r_a^2, or two neighbours, with weight 2 r_a r_(a+1); both axes
    together give four kinds of dot product, each a small map, upsampled by those weights instead of r and c.

    Args:
        features: (B, C, h, w).
        rows: (H, h), r.
        columns: (W, w), c.

    Returns:
        (B, 1, H, W).
    """

    def dot(left: Tensor, right: Tensor) -> Tensor:
        return (left * right).sum(dim=1)

    up, down = features[:, :, :-1], features[:, :, 1:]  # neighbours along y
    left, right = features[..., :-1], features[..., 1:]  # neighbours along x
    diagonals = dot(up[..., :-1], down[..., 1:]) + dot(up[..., 1:], down[..., :-1])  # (B, h - 1, w - 1)
    same_row = torch.cat([dot(features, features), 2 * dot(left, right)], dim=2)  # (B, h, 2 w - 1)
    two_rows = torch.cat([2 * dot(up, down), 2 * diagonals], dim=2)  # (B, h - 1, 2 w - 1)
    pairs = torch.cat([same_row, two_rows], dim=1)  # (B, 2 h - 1, 2 w - 1)
    row_weights = torch.cat([rows.square(), rows[:, :-1] * rows[:, 1:]], dim=1)  # (H, 2 h - 1)
    column_weights = torch.cat([columns.square(), columns[:, :-1] * columns[:, 1:]], dim=1)  # (W, 2 w - 1)
    return (row_weights @ pairs @ column_weights.mT)[:, None]


@full_precision
def orthonormal_penalty(basis: Tensor) -> Tensor:
    """How far the basis is from orthogonal rows: || What What^T - I ||_F^2 with What the rows scaled to length 1.

    It holds the parts apart: without it rows of the basis, and with them parts, may coincide.
    Paper silent: only "discrepancies between different parts are enlarged"; the term is SCOPS's and the released one's.

    Args:
        basis: (K, C) >= 0.

    Returns:
        Scalar in [0, K (K - 1)] for a basis without empty rows; an empty row adds 1.
    """
    rows = basis / (basis.square().sum(dim=1, keepdim=True) + ROW_FLOOR).sqrt()
    identity = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return (rows @ rows.mT - identity).square().sum()


class PartBasis(nn.Module):
    """One non-negative feature vector per part, learned with the network: W = ReLU(w), w starting at |N(0, 1)|.

    Paper silent: released form; w is trained with the parameters outside the backbone.
    """

    def __init__(self, parts: int, channels: int, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(parts, channels, generator=generator).abs())

    def forward(self) -> Tensor:
        """The basis, (K, C) >= 0."""
        return self.weight.relu()


class SemanticFeatures(nn.Module):
    """Layer 4 of a frozen ResNet-18: what a patch of the image shows. Used in training alone.

    Paper: 5.1, "a weight-fixed ResNet-18". Paper silent: layer 4, evaluation mode, no gradient (released).

    The network stays in evaluation mode and is no part of a state dict: it follows from the configuration. Under
    autocast it runs in the lower precision like the network it trains (bfloat16 changes the features by about 1 %, at a
    quarter of the time); its output is float32.

    Args:
        weights: "imagenet" (torchvision's, downloaded once), "none" (random from `seed`), or the path of a torchvision
            ResNet-18 state dict, as `torch.save` wrote it; a classifier in it is ignored.
        seed: of the random weights.

    Raises:
        CheckpointError: the weights cannot be had or are not those of a ResNet-18.
    """

    channels = 512

    def __init__(self, weights: str = "imagenet", *, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(seed)
            self.backbone = Backbone("resnet18")
        load_backbone_weights(self.backbone, weights)
        self.backbone.to(memory_format=torch.channels_last)  # a third faster on the CPU
        self.requires_grad_(False)
        self.train(False)
        self.register_state_dict_post_hook(_drop_from_state_dict)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_keep_own_weights)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> SemanticFeatures:  # noqa: ARG002
        """Stay in evaluation mode, whatever the module around it does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Features of an image.

        Args:
            image: (B, 3, H, W), normalised by ImageNet's mean and standard deviation.

        Returns:
            (B, 512, ceil(H/32), ceil(W/32)) float32, >= 0, raw.
        """
        dtype = next(self.parameters()).dtype
        layer4: Tensor = self.backbone(image.to(dtype, memory_format=torch.channels_last))[-1]
        return layer4.float()


def _drop_from_state_dict(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:  # noqa: ARG001
    """State dict hook: the frozen weights are not saved."""
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]


def _keep_own_weights(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load hook: what is not in the state dict is not missed."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state.update({prefix + name: value for name, value in own.items()})
