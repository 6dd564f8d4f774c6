"""The Siamese encoder: backbone and top-down pyramid (paper 4.1)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from pdnet.model.backbone import Backbone, BackboneName
from pdnet.model.layers import ConvBNReLU, resize


class Pyramid(NamedTuple):
    """The encoder's maps, all with `width` channels.

    Attributes:
        appearance: A, (B, C, H/4, W/4).
        coarser: the fused maps of stride 8 and 16 and the lateral of stride 32, each as it enters the level below:
            resized to strides 4, 8 and 16.
    """

    appearance: Tensor
    coarser: tuple[Tensor, Tensor, Tensor]


class Encoder(nn.Module):
    """Extracts appearance features from one frame; its weights are shared by target and reference.

    Paper: 4.1. Paper silent: the width of the pyramid and that levels meet by element-wise product (released).
    """

    def __init__(self, backbone: BackboneName = "resnet50", width: int = 128) -> None:
        super().__init__()
        self.backbone = Backbone(backbone)
        self.laterals = nn.ModuleList(ConvBNReLU(channels, width, 1) for channels in self.backbone.channels)
        self.fusions = nn.ModuleList(
            nn.Sequential(ConvBNReLU(width, width, 3), ConvBNReLU(width, width, 3)) for _ in range(3)
        )
        #: one segmentation head a level, for the auxiliary losses (4.4)
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 3, padding=1) for _ in range(4))

    def forward(self, image: Tensor) -> Pyramid:
        """Map normalised images (B, 3, H, W) to their pyramid."""
        fine, middle, coarse, deepest = (
            lateral(x) for lateral, x in zip(self.laterals, self.backbone(image), strict=True)
        )
        from_stride32 = resize(deepest, coarse.shape[-2:])
        from_stride16 = resize(self.fusions[2](coarse * from_stride32), middle.shape[-2:])
        from_stride8 = resize(self.fusions[1](middle * from_stride16), fine.shape[-2:])
        return Pyramid(self.fusions[0](fine * from_stride8), (from_stride8, from_stride16, from_stride32))

    def auxiliary_logits(self, pyramid: Pyramid) -> tuple[Tensor, ...]:
        """Portrait logits of the four levels, finest first, (B, 1, h, w) at strides 4, 4, 8 and 16."""
        levels = (pyramid.appearance, *pyramid.coarser)
        return tuple(head(level) for head, level in zip(self.heads, levels, strict=True))
