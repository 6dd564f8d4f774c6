"""The network by torch: batch normalisation folded away, channels last, any number format, compiled if wanted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pdnet.errors import UnavailableError
from pdnet.inference.session import Features, Output
from pdnet.model import PDNet
from pdnet.model.folding import fold_batch_norm
from pdnet.model.streaming import ReferenceEncoder, Segmenter

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class TorchBackend:
    """A network on a device of torch's.

    Args:
        network: left as it is; the backend has a copy.
        size: side S of the square that frames are resized to. Paper: 5.1, 480.
        device: where it runs.
        dtype: of weights and activations throughout; the answers are float32.
        compiled: let `torch.compile` make kernels for the first shapes that come, which takes a minute (on the CPU it
            needs a C++ compiler); on a GPU the launches become CUDA graphs.
    """

    raw = False

    def __init__(
        self,
        network: PDNet,
        *,
        size: int,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        self.size, self.references = size, network.config.references
        self.device, self.dtype = device or torch.device("cpu"), dtype
        self.name = f"torch, {_NAMES.get(dtype, str(dtype))}{', compiled' if compiled else ''}"
        self.network = fold_batch_norm(network).to(self.device, dtype).to(memory_format=torch.channels_last)
        self._encoder, segmenter = ReferenceEncoder(self.network), Segmenter(self.network)
        self._outputs = segmenter.outputs
        self._segmenter: Callable[..., tuple[Tensor, ...]] = segmenter
        self._overwrites = False
        if compiled:
            mode = "max-autotune" if self.device.type == "cuda" else None
            options: dict[str, Any] = {"mode": mode} if mode else {"options": {"freezing": True}}
            # The next frame is written where this one is, and a session keeps the features of some.
            self._overwrites = mode is not None
            self._segmenter = torch.compile(segmenter, dynamic=False, **options)

    def encode(self, image: Tensor) -> Features:
        """Key and value of reference frames (B, 3, S, S) float32, on the device."""
        with torch.inference_mode():
            key, value = self._encoder(self._input(image))
            return key, value

    def segment(self, image: Tensor, references: Sequence[Features]) -> Output:
        """Segment (B, 3, S, S) float32 against N references of a batch of B or of 1."""
        with torch.inference_mode():
            key, value = references[0] if len(references) == 1 else map(_join, zip(*references, strict=True))
            found = dict(zip(self._outputs, self._segmenter(self._input(image), key, value), strict=True))
            own = (found["own_key"], found["own_value"]) if "own_key" in found else None
            if own and self._overwrites:
                own = own[0].clone(), own[1].clone()
            probability, saliency, part_prob = (
                found[name].cpu() if name in found else None for name in ("probability", "saliency", "part_prob")
            )
            assert probability is not None
            return Output(probability, saliency, part_prob, own)

    def _input(self, image: Tensor) -> Tensor:
        return image.to(self.device, self.dtype, memory_format=torch.channels_last)


def require_compiler(device: torch.device) -> None:
    """See that torch.compile can work for a device.

    Raises:
        UnavailableError: on the CPU without a C++ compiler.
    """
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UnavailableError("torch.compile needs a C++ compiler on the CPU; found neither $CXX nor g++")


def _join(tensors: Sequence[Tensor]) -> Tensor:
    """The features of N reference frames along their axis; those of a batch of 1 serve a larger one."""
    batch = max(len(x) for x in tensors)
    return torch.cat([x.expand(batch, *x.shape[1:]) for x in tensors], dim=1)
