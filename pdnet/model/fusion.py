"""Spatiotemporal fusion of appearance and motion (paper 4.3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pdnet.model.layers import ConvBNReLU, resize


class SpatiotemporalFusion(nn.Module):
    """Sums appearance A, expanded motion t and their product, then two 3x3 convolutions.

    Paper: 4.3, figure 6(c).
    """

    def __init__(self, width: int, motion_width: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(motion_width, width, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(width)
        self.gate = nn.Conv2d(width, width, 1, bias=False)
        self.mix = nn.Sequential(ConvBNReLU(width, width, 3), ConvBNReLU(width, width, 3))

    def forward(self, appearance: Tensor, motion: Tensor) -> Tensor:
        """Fuse A (B, C_A, H/4, W/4) with M (B, C, H/16, W/16) into (B, C_A, H/4, W/4)."""
        # A 1x1 convolution and bilinear resizing commute: expanding first does the product on 1/16 of the pixels.
        motion = F.relu(self.expand_norm(resize(self.expand(motion), appearance.shape[-2:])))
        fused: Tensor = self.mix(appearance + motion + appearance * self.gate(motion))
        return fused
