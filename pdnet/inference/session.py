"""A clip through the network: the reference is encoded once, then frame after frame."""

from __future__ import annotations

from collections import deque
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from pdnet.data.io import UInt8Array
from pdnet.data.streams import REFERENCE_LAG
from pdnet.data.transforms import normalise, resize_image
from pdnet.model import PDNet, PDNetOutput, ReferenceFeatures, resize

T = TypeVar("T")


class Prediction(NamedTuple):
    """What the network says about one frame.

    Attributes:
        probability: (H, W) float32 in 0..1 at the frame's size; portrait from 0.5 on.
        saliency: (h, w) float32 in 0..1, S at the resolution of IPDA; None without IPDA.
        part_prob: (K, h, w) float32, D: shares of the parts, 1 in sum; None without IPDA.
    """

    probability: npt.NDArray[np.float32]
    saliency: npt.NDArray[np.float32] | None
    part_prob: npt.NDArray[np.float32] | None


def prepare(network: PDNet, device: torch.device, dtype: torch.dtype = torch.float32) -> PDNet:
    """Bring a network into the form that runs fastest: evaluation mode, channels last, `dtype` throughout."""
    return network.eval().to(device, dtype).to(memory_format=torch.channels_last)


class ReferenceRing(Generic[T]):
    """The N reference frames of the next target: the first frame, then those `lag`, 2 `lag`, ... frames before it.

    Paper: 4.1, the first frame; 5.5 (table 5), the fifth annotated frame before as the second. No reference lies
    before the first frame.

    Args:
        first: what is kept of the first frame.
        references: N.
    """

    def __init__(self, first: T, references: int) -> None:
        self.first, self.references = first, references
        self.past: deque[T] = deque(maxlen=max(1, (references - 1) * REFERENCE_LAG))

    def current(self) -> list[T]:
        """The N references of the next target."""
        lags = [REFERENCE_LAG * n for n in range(1, self.references)]
        return [self.first, *(self.past[-lag] if lag <= len(self.past) else self.first for lag in lags)]

    def push(self, item: T) -> None:
        """Remember a frame that has been segmented."""
        self.past.append(item)


class PortraitSession:
    """Segments the frames of one clip against its first frame (and later ones, for networks of N > 1 references).

    Args:
        network: as `prepare` returns it.
        size: side of the square that frames are resized to. Paper: 5.1, 480.
        reference: the clip's first frame, (H, W, 3) uint8 RGB. Paper: 4.1.
    """

    def __init__(self, network: PDNet, *, size: int, reference: UInt8Array) -> None:
        self.network, self.size = network, size
        parameter = next(network.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        with torch.inference_mode():
            first = network.encode_reference(self.to_input(reference))
        self.ring: ReferenceRing[ReferenceFeatures] = ReferenceRing(first, network.config.references)

    def to_input(self, frame: UInt8Array) -> torch.Tensor:
        """(H, W, 3) uint8 RGB -> (1, 3, size, size), normalised, on the device."""
        tensor = normalise(resize_image(frame, self.size)).unsqueeze(0)
        return tensor.to(self.device, self.dtype, memory_format=torch.channels_last)

    def infer(self, image: torch.Tensor) -> PDNetOutput:
        """The network alone on an input of `to_input`; what the paper's FPS measures."""
        with torch.inference_mode():
            current = self.ring.current()
            references = current[0] if len(current) == 1 else ReferenceFeatures.concatenate(current)
            return self.network.segment(image, references, as_reference=self.ring.references > 1)

    def step(self, frame: UInt8Array) -> Prediction:
        """Segment one frame of the clip, (H, W, 3) uint8 RGB of any size."""
        image = self.to_input(frame)
        output = self.infer(image)
        with torch.inference_mode():
            if output.as_reference is not None:
                self.ring.push(output.as_reference)
            probability = resize(output.logits.float().sigmoid(), frame.shape[:2])[0, 0].cpu().numpy()
            maps = output.maps
            if maps.saliency_logits is None or maps.part_logits is None:
                return Prediction(probability, None, None)
            saliency = maps.saliency_logits.float().sigmoid()[0, 0].cpu().numpy()
            return Prediction(probability, saliency, maps.part_logits.float().softmax(1)[0].cpu().numpy())
