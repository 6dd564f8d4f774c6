"""Run by torchrun: what a process of several finds, as a file for each rank in the folder named."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from pdnet.losses import weighted_bce
from pdnet.training import distributed


def whole_batch() -> tuple[Tensor, Tensor]:
    """Images and weights of a loss, (4, 3, 5, 7), far from mean 0."""
    generator = torch.Generator().manual_seed(0)
    images, factors = torch.randn(2, 4, 3, 5, 7, generator=generator, dtype=torch.double)
    return images + 100, factors


def network() -> nn.Sequential:
    """A convolution between two batch normalisations, in double precision."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)).double()
    for parameter in layers.parameters():
        nn.init.normal_(parameter)
    return layers


def outcome(layers: nn.Sequential, images: Tensor, factors: Tensor) -> dict[str, Tensor]:
    """Outputs, gradients and statistics after a step whose loss is a mean over the batch."""
    images = images.clone().requires_grad_()
    output = layers(images)
    loss = (output.tanh() * factors.repeat(1, 2, 1, 1)[:, :, 1:-1, 1:-1]).mean()
    loss.backward()
    distributed.average_gradients(layers.parameters())
    found = {f"gradient of {name}": x.grad for name, x in layers.named_parameters() if x.grad is not None}
    assert images.grad is not None
    return {**found, **dict(layers.named_buffers()), "output": output.detach(), "gradient of images": images.grad}


if __name__ == "__main__":
    with distributed.process_group("cpu"):
        rank, size = distributed.rank(), distributed.processes()
        layers = network()
        distributed.share_batch_norm(layers)
        mine = slice(rank * 4 // size, (rank + 1) * 4 // size)
        images, factors = whole_batch()
        found = outcome(layers, images[mine], factors[mine])
        logits, mask = images[mine, :1] - 100, (factors[mine, :1] > 0.3).double()
        found["bce"] = torch.tensor(distributed.average({"bce": weighted_bce(logits, mask)})["bce"])
        found["votes"] = torch.tensor([distributed.any_process(rank == 1), distributed.any_process(False)])
        found["from main"] = torch.tensor(distributed.from_main(10 + rank))
        torch.save(found, Path(sys.argv[1]) / f"{rank}.pt")
