"""Networks and images that are quick to run and give values around 1."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from pdnet.model import ModelConfig, PDNet

SMALL: dict[str, Any] = {"backbone": "resnet18", "width": 12, "part_width": 6, "attention_width": 4, "parts": 3}


def small_network(seed: int = 0, **architecture: Any) -> PDNet:
    """A network in evaluation mode whose weights and batch statistics differ from one another everywhere."""
    network = PDNet(ModelConfig(**SMALL | architecture))
    randomise(network, seed)
    return network.eval()


def images(*shape: int, seed: int = 0) -> Tensor:
    """(*shape[:-2], 3, H, W) normalised images."""
    return torch.randn((*shape[:-2], 3, *shape[-2:]), generator=torch.Generator().manual_seed(seed))


def randomise(module: nn.Module, seed: int) -> None:
    """Draw weights and the statistics of a trained network."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    with torch.no_grad():
        for name, layer in module.named_modules():
            if isinstance(layer, nn.BatchNorm2d):
                # The last norm of a residual block is small, else values grow from block to block.
                share = 0.25 if re.search(r"layer\d\.\d+\.bn2$", name) else 1.0
                draw(layer.weight, 0.8 * share, 1.2 * share)
                draw(layer.bias, -0.2, 0.2)
                draw(layer.running_mean, -0.2, 0.2)
                draw(layer.running_var, 0.5, 1.5)
            elif isinstance(layer, nn.Conv2d):
                bound = (3 * 1.5 / layer.weight[0].numel()) ** 0.5  # variance 1.5 / fan-in
                draw(layer.weight, -bound, bound)
                if layer.bias is not None:
                    draw(layer.bias, -0.2, 0.2)
