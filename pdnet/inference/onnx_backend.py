"""Exported graphs, run by ONNX Runtime or OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pdnet.errors import ExportError, UnavailableError
from pdnet.inference.session import Features, Output

_Arrays = dict[str, npt.NDArray[np.float32]]
#: What a session keeps of a reference frame, and what a segmenter may say of its own frame.
_FEATURES, _OWN = ("key", "value"), ("own_key", "own_value")


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
        self._session = _onnxruntime(path, inputs=("target", "reference"), outputs=("probability",))
        shapes = {node.name: node.shape for node in self._session.get_inputs()}
        self.size = int(shapes["target"][-1])
        self.references = int(shapes["reference"][1]) if len(shapes["reference"]) == 5 else 1

    def probability(self, target: Tensor, reference: Tensor) -> Tensor:
        """(B, 3, S, S) and (B, 3, S, S), or (B, N, 3, S, S) for N references, float32 -> (B, 1, S, S) float32."""
        feeds = {"target": target.numpy(), "reference": reference.numpy()}
        return torch.from_numpy(self._session.run(["probability"], feeds)[0])


class PairBackend:
    """A pair graph, which encodes its references anew for each frame.

    Args:
        model: the opened graph.
    """

    name = "pair graph"

    def __init__(self, model: PairModel) -> None:
        self._model, self.size, self.references = model, model.size, model.references

    def encode(self, image: Tensor) -> Features:
        """The frames themselves: nothing of them is computed before they are needed."""
        return (image,)

    def segment(self, image: Tensor, references: Sequence[Features]) -> Output:
        """Segment (B, 3, S, S) float32 against N references of a batch of B or of 1."""
        probability = self._model.probability(image, pair_reference(image, references))
        return Output(probability, own=(image,) if self.references > 1 else None)


def pair_reference(image: Tensor, references: Sequence[Features]) -> Tensor:
    """What a pair graph takes beside targets (B, 3, S, S): (B, 3, S, S), or (B, N, 3, S, S) of N references."""
    frames = [reference.expand(len(image), -1, -1, -1) for (reference,) in references]
    return frames[0].contiguous() if len(frames) == 1 else torch.stack(frames, dim=1)


class StreamingBackend:
    """The streaming pair of `pdnet export onnx`: references are encoded once a clip.

    Args:
        folder: with reference_encoder.onnx and segmenter.onnx.
        runtime: `onnxruntime` or `openvino`.
        bf16: let OpenVINO compute in bfloat16, which is fast on processors that multiply it.

    Raises:
        ExportError: a file is missing, or is not that graph of a PDNet.
        UnavailableError: the runtime is not installed.
    """

    def __init__(self, folder: Path, *, runtime: str = "onnxruntime", bf16: bool = False) -> None:
        encoder, segmenter = folder / "reference_encoder.onnx", folder / "segmenter.onnx"
        # ONNX Runtime checks both in any case: whose graphs these are, and for how many references.
        graphs = {
            encoder: _onnxruntime(encoder, inputs=("image",), outputs=_FEATURES),
            segmenter: _onnxruntime(segmenter, inputs=("image", *_FEATURES), outputs=("probability",)),
        }
        self.size = int(graphs[segmenter].get_inputs()[0].shape[-1])
        facts = graphs[segmenter].get_modelmeta().custom_metadata_map
        try:
            self.references = int(facts["references"])
        except (KeyError, ValueError):
            raise ExportError(f"{segmenter}: does not say its number of references; expected it as metadata") from None
        self._run: Mapping[Path, Callable[[_Arrays], _Arrays]]
        if runtime == "openvino":
            self.name = f"OpenVINO, {'bf16' if bf16 else 'fp32'}"
            self._run = {path: _openvino(path, bf16=bf16) for path in graphs}
        else:
            self.name = "ONNX Runtime, fp32"
            self._run = {path: _runner(session) for path, session in graphs.items()}
        self._encoder, self._segmenter = encoder, segmenter

    def encode(self, image: Tensor) -> Features:
        """Key and value of reference frames (B, 3, S, S) float32."""
        found = self._run[self._encoder]({"image": image.numpy()})
        return tuple(torch.from_numpy(found[name]) for name in _FEATURES)

    def segment(self, image: Tensor, references: Sequence[Features]) -> Output:
        """Segment (B, 3, S, S) float32 against N references of a batch of B or of 1."""
        feeds = {"image": image.numpy()}
        for name, tensors in zip(_FEATURES, zip(*references, strict=True), strict=True):
            frames = [x.expand(len(image), *x.shape[1:]) for x in tensors]
            feeds[name] = (frames[0].contiguous() if len(frames) == 1 else torch.cat(frames, dim=1)).numpy()
        found = {name: torch.from_numpy(array) for name, array in self._run[self._segmenter](feeds).items()}
        own = tuple(found[name] for name in _OWN) if _OWN[0] in found else None
        return Output(found["probability"], found.get("saliency"), found.get("part_prob"), own)


def _runner(session: Any) -> Callable[[_Arrays], _Arrays]:
    names = [node.name for node in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def _onnxruntime(path: Path, *, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Any:
    """An ONNX Runtime session of a file whose graph has these inputs, and these outputs first."""
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
    if set(given) != set(inputs) or made[: len(outputs)] != outputs:
        raise ExportError(
            f"{path}: inputs {', '.join(given)} and outputs {', '.join(made)}; "
            f"expected {' and '.join(inputs)}, and {' and '.join(outputs)}"
        )
    return session


def _openvino(path: Path, *, bf16: bool) -> Callable[[_Arrays], _Arrays]:
    """A graph compiled by OpenVINO for the processor, for one stream at a time."""
    try:
        import openvino
    except ImportError:
        raise UnavailableError("the package 'openvino' is not installed; try: pip install 'pdnet[openvino]'") from None
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(path),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        },
    )
    request = compiled.create_infer_request()
    names = [output.get_any_name() for output in compiled.outputs]

    def run(feeds: _Arrays) -> _Arrays:
        request.infer(feeds, share_inputs=True)
        return {name: request.get_tensor(name).data.copy() for name in names}

    return run
