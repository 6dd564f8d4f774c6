"""Batch normalisation folded into the convolutions before it: the same function, with fewer operations."""

from __future__ import annotations

import copy
import itertools

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pdnet.model.pdnet import PDNet


def fold_batch_norm(network: PDNet) -> PDNet:
    """A copy in evaluation mode whose convolutions do the work of the batch normalisations after them.

    Only what an inference does not need is gone: the heads of the auxiliary losses, which are not run.
    """
    network = copy.deepcopy(network).eval().requires_grad_(requires_grad=False)
    for module in network.modules():
        for convolution, norm in _pairs(module):
            setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
            setattr(module, norm, nn.Identity())
    return network


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    """The names of the convolutions of a module that a batch normalisation follows, each with its name."""
    children = dict(module.named_children())
    if isinstance(module, nn.Sequential):
        names = list(itertools.pairwise(children))
    else:  # torchvision's blocks have conv1 and bn1; between expand and expand_norm lies a resizing, which commutes
        names = [(name, name.replace("conv", "bn")) for name in children] + [
            (name, f"{name}_norm") for name in children
        ]
    return [
        (first, second)
        for first, second in names
        if isinstance(children[first], nn.Conv2d) and isinstance(children.get(second), nn.BatchNorm2d)
    ]
