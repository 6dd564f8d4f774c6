"""Exported graphs behind the same interface as the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pdnet.data.io import UInt8Array
from pdnet.data.transforms import normalise, resize_image
from pdnet.errors import ExportError
from pdnet.inference.session import Prediction, ReferenceRing
from pdnet.model import resize


class PairModel(Protocol):
    """An exported pair graph, whatever runs it.

    Attributes:
        size: side S of the square inputs.
        references: N.
    """

    size: int
    references: int

    def probability(self, target: Tensor, reference: Tensor) -> Tensor:
        """(B, 3, S, S) and (B, 3, S, S), or (B, N, 3, S, S) for N references, float32 -> (B, 1, S, S) float32."""


class OnnxModel:
    """The pair graph of `pdnet export onnx`, opened with ONNX Runtime on the CPU.

    Raises:
        ExportError: the file is missing, or no graph with the inputs and output of a PDNet pair.
    """

    def __init__(self, path: Path) -> None:
        self.session = _open(path, inputs=("target", "reference"), outputs=(("probability",),))
        shapes = {node.name: node.shape for node in self.session.get_inputs()}
        self.size = int(shapes["target"][-1])
        self.references = int(shapes["reference"][1]) if len(shapes["reference"]) == 5 else 1

    def probability(self, target: Tensor, reference: Tensor) -> Tensor:
        """(B, 3, S, S) and (B, 3, S, S), or (B, N, 3, S, S) for N references, float32 -> (B, 1, S, S) float32."""
        feeds = {"target": target.numpy(), "reference": reference.numpy()}
        return torch.from_numpy(self.session.run(["probability"], feeds)[0])


class OnnxSession:
    """Segments the frames of one clip with a pair graph, which encodes the reference anew for each frame.

    Args:
        model: the opened file, an `OnnxModel` or another one's runtime.
        reference: the clip's first frame, (H, W, 3) uint8 RGB.
    """

    def __init__(self, model: PairModel, *, reference: UInt8Array) -> None:
        self.model = model
        self.ring: ReferenceRing[Tensor] = ReferenceRing(self.to_input(reference), model.references)

    def to_input(self, frame: UInt8Array) -> Tensor:
        """(H, W, 3) uint8 RGB -> (1, 3, S, S) float32."""
        return normalise(resize_image(frame, self.model.size)).unsqueeze(0)

    def reference(self) -> Tensor:
        """The graph's second input for the next frame: (1, 3, S, S), or (1, N, 3, S, S)."""
        current = self.ring.current()
        return current[0] if len(current) == 1 else torch.stack(current, dim=1)

    def step(self, frame: UInt8Array) -> Prediction:
        """Segment one frame of the clip, (H, W, 3) uint8 RGB of any size."""
        target = self.to_input(frame)
        probability = self.model.probability(target, self.reference())
        self.ring.push(target)
        return _prediction(probability, frame)


class Features(NamedTuple):
    """What a target needs of N reference frames, as the streaming graphs hand it on.

    Attributes:
        key: (B, N, K, h*w, d) float32.
        value: as `key`.
    """

    key: Tensor
    value: Tensor


class StreamingModel:
    """The streaming pair of `pdnet export onnx`, opened with ONNX Runtime on the CPU.

    Args:
        reference_encoder: runs once a clip.
        segmenter: runs once a frame.

    Raises:
        ExportError: a file is missing, or is not that graph of a PDNet.
    """

    def __init__(self, reference_encoder: Path, segmenter: Path) -> None:
        self.encoder = _open(reference_encoder, inputs=("image",), outputs=(("key", "value"),))
        alone = ("probability",)
        own = (*alone, "own_key", "own_value")
        self.segmenter = _open(segmenter, inputs=("image", "key", "value"), outputs=(alone, own))
        self.size = int(self.segmenter.get_inputs()[0].shape[-1])
        facts = self.segmenter.get_modelmeta().custom_metadata_map
        try:
            self.references = int(facts["references"])
        except (KeyError, ValueError):
            raise ExportError(f"{segmenter}: does not say its number of references; expected it as metadata") from None

    def encode_reference(self, image: Tensor) -> Features:
        """(B, 3, S, S) float32 -> its features, N = 1."""
        return Features(*map(torch.from_numpy, self.encoder.run(["key", "value"], {"image": image.numpy()})))

    def segment(self, image: Tensor, references: Sequence[Features]) -> tuple[Tensor, Features | None]:
        """Segment targets (B, 3, S, S) float32 against their references.

        Returns:
            (B, 1, S, S) float32 in 0..1; and the targets' own features, from networks of N > 1 references.
        """
        if len(references) == 1:
            key, value = references[0]
        else:
            key, value = (torch.cat(frames, dim=1) for frames in zip(*references, strict=True))
        feeds = {"image": image.numpy(), "key": key.numpy(), "value": value.numpy()}
        probability, *own = map(torch.from_numpy, self.segmenter.run(None, feeds))
        return probability, Features(*own) if own else None

    def probability(self, target: Tensor, reference: Tensor) -> Tensor:
        """As the pair graph: (B, 3, S, S) and (B, 3, S, S), or (B, N, 3, S, S), float32 -> (B, 1, S, S) float32."""
        frames = [reference] if reference.dim() == 4 else list(reference.unbind(1))
        return self.segment(target, [self.encode_reference(frame) for frame in frames])[0]


class StreamingSession:
    """Segments the frames of one clip with a streaming pair: no frame is encoded twice.

    Args:
        model: the opened files.
        reference: the clip's first frame, (H, W, 3) uint8 RGB.
    """

    def __init__(self, model: StreamingModel, *, reference: UInt8Array) -> None:
        self.model = model
        first = model.encode_reference(self.to_input(reference))
        self.ring: ReferenceRing[Features] = ReferenceRing(first, model.references)

    def to_input(self, frame: UInt8Array) -> Tensor:
        """(H, W, 3) uint8 RGB -> (1, 3, S, S) float32."""
        return normalise(resize_image(frame, self.model.size)).unsqueeze(0)

    def step(self, frame: UInt8Array) -> Prediction:
        """Segment one frame of the clip, (H, W, 3) uint8 RGB of any size."""
        probability, own = self.model.segment(self.to_input(frame), self.ring.current())
        if own is not None:
            self.ring.push(own)
        return _prediction(probability, frame)


def _prediction(probability: Tensor, frame: UInt8Array) -> Prediction:
    return Prediction(resize(probability, frame.shape[:2])[0, 0].numpy(), None, None)


def _open(path: Path, *, inputs: tuple[str, ...], outputs: tuple[tuple[str, ...], ...]) -> Any:
    """An ONNX Runtime session of a file whose graph has these inputs, and one of these lists of outputs."""
    import onnxruntime

    if not Path(path).is_file():
        raise ExportError(f"{path}: no such file; expected an ONNX file of `pdnet export onnx`")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own classes, none of them public
        raise ExportError(f"{path}: cannot be opened by ONNX Runtime ({str(error).splitlines()[0]})") from None
    given = tuple(node.name for node in session.get_inputs())
    made = tuple(node.name for node in session.get_outputs())
    if set(given) != set(inputs) or made not in outputs:
        raise ExportError(
            f"{path}: inputs {', '.join(given)} and outputs {', '.join(made)}; "
            f"expected {' and '.join(inputs)}, and {' and '.join(outputs[0])}"
        )
    return session
