"""An exported pair graph behind the same interface as the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

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

    def probability(self, target: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) and (B, 3, S, S), or (B, N, 3, S, S) for N references, float32 -> (B, 1, S, S) float32."""


class OnnxModel:
    """An ONNX file of `pdnet export-onnx`, opened with ONNX Runtime on the CPU.

    Raises:
        ExportError: the file is missing, or no graph with the inputs and output of a PDNet pair.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        if not Path(path).is_file():
            raise ExportError(f"{path}: no such file; expected an ONNX file of `pdnet export-onnx`")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises its own classes, none of them public
            raise ExportError(f"{path}: cannot be opened by ONNX Runtime ({str(error).splitlines()[0]})") from None
        shapes = {node.name: node.shape for node in self.session.get_inputs()}
        outputs = [node.name for node in self.session.get_outputs()]
        if set(shapes) != {"target", "reference"} or outputs != ["probability"]:
            raise ExportError(
                f"{path}: inputs {', '.join(shapes)} and outputs {', '.join(outputs)}; "
                "expected target and reference, and probability"
            )
        self.size = int(shapes["target"][-1])
        self.references = int(shapes["reference"][1]) if len(shapes["reference"]) == 5 else 1

    def probability(self, target: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
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
        self.ring: ReferenceRing[torch.Tensor] = ReferenceRing(self.to_input(reference), model.references)

    def to_input(self, frame: UInt8Array) -> torch.Tensor:
        """(H, W, 3) uint8 RGB -> (1, 3, S, S) float32."""
        return normalise(resize_image(frame, self.model.size)).unsqueeze(0)

    def reference(self) -> torch.Tensor:
        """The graph's second input for the next frame: (1, 3, S, S), or (1, N, 3, S, S)."""
        current = self.ring.current()
        return current[0] if len(current) == 1 else torch.stack(current, dim=1)

    def step(self, frame: UInt8Array) -> Prediction:
        """Segment one frame of the clip, (H, W, 3) uint8 RGB of any size."""
        target = self.to_input(frame)
        probability = self.model.probability(target, self.reference())
        self.ring.push(target)
        return Prediction(resize(probability, frame.shape[:2])[0, 0].numpy(), None, None)
