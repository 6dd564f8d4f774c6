"""A clip through a network, whatever runs it: references are encoded once, then frame after frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pdnet.data.io import UInt8Array
from pdnet.data.streams import REFERENCE_LAG
from pdnet.data.transforms import normalise, resize_image
from pdnet.model import resize

T = TypeVar("T")

#: What a backend keeps of frames as references for later ones: tensors whose first axis is the batch.
Features = tuple[Tensor, ...]


class Output(NamedTuple):
    """What a backend answers for a batch of frames, at the network's size.

    Attributes:
        probability: (B, 1, S, S) float32 in 0..1.
        saliency: (B, 1, h, w) float32 in 0..1, S; None without IPDA, and from files that do not give it.
        part_prob: (B, K, h, w) float32, D, likewise.
        own: of these frames, for later ones to refer to; None from networks of one reference.
    """

    probability: Tensor
    saliency: Tensor | None = None
    part_prob: Tensor | None = None
    own: Features | None = None


class Backend(Protocol):
    """A network ready to run: torch, ONNX Runtime, OpenVINO or TensorRT.

    Attributes:
        name: for people, such as `torch, bf16, compiled`.
        size: side S of its square inputs.
        references: number N of frames that it refers to.
        raw: it normalises by itself: its images are frames, (B, S, S, 3) uint8 RGB.
    """

    name: str
    size: int
    references: int
    raw: bool

    def encode(self, image: Tensor) -> Features:
        """What is kept of reference frames, (B, 3, S, S) float32 normalised."""

    def segment(self, image: Tensor, references: Sequence[Features]) -> Output:
        """Segment frames against their references.

        Args:
            image: (B, 3, S, S) float32, normalised, on the CPU.
            references: one entry a reference frame; of a batch of B, or of 1 for all.
        """


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


class ReferenceRing(Generic[T]):
    """The N reference frames of the next target: the first frame, then those `lag`, 2 `lag`, ... frames before it.

    Paper: 4.1, the first frame; 5.5 (table 5), the fifth annotated frame before as the second. No reference lies
    before the first frame.

    Args:
        first: what is kept of the first frame.
        references: N.
        lag: in frames as they are pushed.
    """

    def __init__(self, first: T, references: int, lag: int = REFERENCE_LAG) -> None:
        self.first, self.references, self.lag = first, references, lag
        self.past: deque[T] = deque(maxlen=max(1, (references - 1) * lag))

    def current(self, ahead: int = 0) -> list[T]:
        """The N references of the next target, or of the one `ahead` (less than `lag`) frames after it."""
        back = [self.lag * n - ahead for n in range(1, self.references)]
        return [self.first, *(self.past[-lag] if lag <= len(self.past) else self.first for lag in back)]

    def push(self, item: T) -> None:
        """Remember a frame that has been segmented."""
        self.past.append(item)


class PortraitSession:
    """Segments the frames of one clip against its first frame (and later ones, for networks of N > 1 references).

    Args:
        backend: runs the network; may serve many sessions.
        reference: the clip's first frame, (H, W, 3) uint8 RGB (Paper: 4.1); or several frames, to which all targets
            refer then.
        lag: frames from a target to its second reference, for networks of N > 1. Paper: 5.5, five annotated frames.
    """

    def __init__(
        self, backend: Backend, *, reference: UInt8Array | Sequence[UInt8Array], lag: int = REFERENCE_LAG
    ) -> None:
        self.backend = backend
        given = [reference] if isinstance(reference, np.ndarray) else list(reference)
        kept = [backend.encode(self.to_input(frame)) for frame in given]
        self._fixed = kept if len(kept) > 1 else None
        self.ring: ReferenceRing[Features] = ReferenceRing(kept[0], backend.references, lag)

    def to_input(self, frame: UInt8Array) -> Tensor:
        """(H, W, 3) uint8 RGB -> what the backend takes, of a batch of 1."""
        return to_input(frame, self.backend.size, raw=self.backend.raw)

    def infer(self, image: Tensor) -> Output:
        """The network alone on an input of `to_input`; what the paper's FPS measures. Remembers nothing."""
        return self.backend.segment(image, self._fixed or self.ring.current())

    def step(self, frame: UInt8Array) -> Prediction:
        """Segment one frame of the clip, (H, W, 3) uint8 RGB of any size."""
        output = self.infer(self.to_input(frame))
        if output.own is not None:
            self.ring.push(output.own)
        return _prediction(output, 0, frame)

    def step_batch(self, frames: Sequence[UInt8Array]) -> list[Prediction]:
        """`step` for frames that follow each other, at once: faster where the device is larger than a frame."""
        found: list[Prediction] = []
        follows = self._fixed is None and self.backend.references > 1
        chunk = self.ring.lag if follows else max(1, len(frames))  # of later frames the references are not known yet
        for start in range(0, len(frames), chunk):
            some = frames[start : start + chunk]
            references = self._fixed or self.ring.current()
            if follows:
                each = [self.ring.current(ahead) for ahead in range(len(some))]
                references = [_stack(features) for features in zip(*each, strict=True)]
            output = self.backend.segment(torch.cat([self.to_input(frame) for frame in some]), references)
            for index, frame in enumerate(some):
                if output.own is not None:
                    self.ring.push(tuple(x[index : index + 1] for x in output.own))
                found.append(_prediction(output, index, frame))
        return found


def to_input(frame: UInt8Array, size: int, *, raw: bool = False) -> Tensor:
    """(H, W, 3) uint8 RGB -> (1, 3, size, size) float32, normalised; or (1, size, size, 3) uint8, `raw`."""
    resized = resize_image(frame, size)
    return (torch.from_numpy(resized.copy()) if raw else normalise(resized)).unsqueeze(0)


def _stack(features: Sequence[Features]) -> Features:
    """The features of several targets' references, along the batch."""
    return tuple(torch.cat(tensors) for tensors in zip(*features, strict=True))


def _prediction(output: Output, index: int, frame: UInt8Array) -> Prediction:
    probability = resize(output.probability[index : index + 1], frame.shape[:2])[0, 0].numpy()
    if output.saliency is None or output.part_prob is None:
        return Prediction(probability, None, None)
    return Prediction(probability, output.saliency[index, 0].numpy(), output.part_prob[index].numpy())
