"""The losses of PDNet: segmentation (section 4.4), parts (eq. 3-7) and the step's sum of them.

Start at `PDNetLoss`; each equation is a function of plain tensors that can be read and tested alone.
"""

from pdnet.losses.parts import area_variance, geometric_concentration
from pdnet.losses.segmentation import l1, segmentation_loss, weighted_bce
from pdnet.losses.semantic import (
    PartBasis,
    SemanticFeatures,
    orthonormal_penalty,
    semantic_consistency,
)
from pdnet.losses.total import FrameLogits, Loss, LossConfig, PDNetLoss, part_losses

__all__ = [
    "FrameLogits",
    "Loss",
    "LossConfig",
    "PDNetLoss",
    "PartBasis",
    "SemanticFeatures",
    "area_variance",
    "geometric_concentration",
    "l1",
    "orthonormal_penalty",
    "part_losses",
    "segmentation_loss",
    "semantic_consistency",
    "weighted_bce",
]
