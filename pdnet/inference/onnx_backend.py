"""Exported graphs, run by ONNX Runtime or OpenVINO on the CPU."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pdnet.errors import ExportError, UnavailableError
from pdnet.inference.session import Features, Output

_Arrays = dict[str, npt.NDArray[Any]]
#: What a session keeps of a reference frame, and what a segmenter may say of its own frame.
_FEATURES, _OWN = ("key", "value"), ("own_key", "own_value")


class PairModel(Protocol):
    """An exported pair graph, whatever runs it.

    Attributes:
        size: side S of the square inputs.
        references: N.
        raw: images are (S, S, 3) uint8 instead of (3, S, S) float32, normalised.
    """

    size: int
    references: int
    raw: bool

    def probability(self, target: Tensor, reference: Tensor) -> Tensor:
        """(B, *image) and (B, *image), or (B, N, *image) for N references -> (B, 1, S, S) float32."""


class OnnxModel:
    """The pair graph of `pdnet export onnx`, opened with ONNX Runtime on the CPU.

    Raises:
        ExportError: the file is missing, or no graph with the inputs and output of a PDNet pair.
    """

    def __init__(self, path: Path) -> None:
        self._graph = _by_onnxruntime(_present(path))
        _check(path, self._graph, ("target", "reference"), ("probability",))
        self.size, self.raw = _image(path, self._graph, "target")
        reference = self._graph.inputs["reference"]
        self.references = int(reference[1]) if len(reference) == 5 else 1

    def probability(self, target: Tensor, reference: Tensor) -> Tensor:
        """(B, *image) and (B, *image), or (B, N, *image) for N references -> (B, 1, S, S) float32."""
        feeds = {"target": target.numpy(), "reference": reference.numpy()}
        return torch.from_numpy(self._graph.run(feeds)["probability"])


class PairBackend:
    """A pair graph, which encodes its references anew for each frame.

    Args:
        model: the opened graph.
    """

    name = "pair graph"

    def __init__(self, model: PairModel) -> None:
        self._model, self.size, self.references, self.raw = model, model.size, model.references, model.raw

    def encode(self, image: Tensor) -> Features:
        """The frames themselves: nothing of them is computed before they are needed."""
        return (image,)

    def segment(self, image: Tensor, references: Sequence[Features]) -> Output:
        """Segment a batch of B against N references of a batch of B or of 1."""
        probability = self._model.probability(image, pair_reference(image, references))
        return Output(probability, own=(image,) if self.references > 1 else None)


def pair_reference(image: Tensor, references: Sequence[Features]) -> Tensor:
    """What a pair graph takes beside targets (B, *image): (B, *image), or (B, N, *image) of N references."""
    frames = [reference.expand(len(image), -1, -1, -1) for (reference,) in references]
    return frames[0].contiguous() if len(frames) == 1 else torch.stack(frames, dim=1)


class StreamingBackend:
    """The streaming pair of `pdnet export onnx`: references are encoded once a clip.

    Args:
        folder: with reference_encoder.onnx and segmenter.onnx.
        runtime: `onnxruntime` or `openvino`.
        bf16: let OpenVINO compute in bfloat16, which is fast on processors that multiply it.

    Attributes:
        form: what the files are in: `fp32`, `fp16` or `int8`.

    Raises:
        ExportError: a file is missing, or is not that graph of a PDNet.
        UnavailableError: the runtime is not installed.
    """

    def __init__(self, folder: Path, *, runtime: str = "onnxruntime", bf16: bool = False) -> None:
        encoder, segmenter = folder / "reference_encoder.onnx", folder / "segmenter.onnx"
        openvino = runtime == "openvino"

        def opened(path: Path, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> _Graph:
            graph = _by_openvino(_present(path), bf16=bf16) if openvino else _by_onnxruntime(_present(path))
            _trim()
            _check(path, graph, inputs, outputs)
            return graph

        self._encoder = opened(encoder, ("image",), _FEATURES)
        self._segmenter = opened(segmenter, ("image", *_FEATURES), ("probability",))
        self.size, self.raw = _image(segmenter, self._segmenter, "image")
        self.references = _number(segmenter, self._segmenter, "references")
        self.form = self._segmenter.facts.get("precision", "fp32")
        computed = self.form
        if openvino and self.form != "int8":  # halves are kept as such, and widened when they are multiplied
            computed = ("bf16" if bf16 else "fp32") + (" from fp16" if self.form == "fp16" else "")
        self.name = f"{'OpenVINO' if openvino else 'ONNX Runtime'}, {computed}"

    def encode(self, image: Tensor) -> Features:
        """Key and value of reference frames."""
        found = self._encoder.run({"image": image.numpy()})
        self._encoder.rest()
        return tuple(torch.from_numpy(found[name]) for name in _FEATURES)

    def segment(self, image: Tensor, references: Sequence[Features]) -> Output:
        """Segment a batch of B against N references of a batch of B or of 1."""
        feeds = {"image": image.numpy()}
        for name, tensors in zip(_FEATURES, zip(*references, strict=True), strict=True):
            # By NumPy: torch's threads would go on spinning for a while, on the cores that the runtime needs.
            frames = [np.broadcast_to(x.numpy(), (len(image), *x.shape[1:])) for x in tensors]
            feeds[name] = np.concatenate(frames, axis=1)
        found = {name: torch.from_numpy(array) for name, array in self._segmenter.run(feeds).items()}
        own = tuple(found[name] for name in _OWN) if _OWN[0] in found else None
        return Output(found["probability"], found.get("saliency"), found.get("part_prob"), own)


class _Graph(NamedTuple):
    """A graph that is ready to run."""

    inputs: Mapping[str, Sequence[Any]]  #: their axes by name; what is no number is of any length
    outputs: tuple[str, ...]
    facts: Mapping[str, str]  #: of the metadata of the file, what `_number` asks for
    run: Callable[[_Arrays], _Arrays]
    rest: Callable[[], None] = lambda: None  #: gives back what only a next frame would need, until it comes


def _trim() -> None:
    """Give back what the reading of a file took: the C library keeps as much as the weights for itself."""
    with contextlib.suppress(OSError, AttributeError):  # not the GNU C library
        ctypes.CDLL(None).malloc_trim(0)


def _present(path: Path) -> Path:
    if not path.is_file():
        raise ExportError(f"{path}: no such file; expected an ONNX file of `pdnet export onnx`")
    return path


def _check(path: Path, graph: _Graph, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """See that a graph has these inputs, and these outputs first."""
    if set(graph.inputs) != set(inputs) or graph.outputs[: len(outputs)] != outputs:
        raise ExportError(
            f"{path}: inputs {', '.join(graph.inputs)} and outputs {', '.join(graph.outputs)}; "
            f"expected {' and '.join(inputs)}, and {' and '.join(outputs)}"
        )


def _image(path: Path, graph: _Graph, name: str) -> tuple[int, bool]:
    """Side S of a graph's images, that of the training where any is taken, and whether they are uint8 (S, S, 3)."""
    axes = graph.inputs[name]
    side = axes[2]
    return (side if isinstance(side, int) else _number(path, graph, "size")), axes[-1] == 3


def _number(path: Path, graph: _Graph, key: str) -> int:
    try:
        return int(graph.facts[key])
    except (KeyError, ValueError):
        raise ExportError(f"{path}: does not say its '{key}'; expected a number as metadata") from None


def _by_onnxruntime(path: Path) -> _Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own classes, none of them public
        raise ExportError(f"{path}: cannot be opened by ONNX Runtime ({str(error).splitlines()[0]})") from None
    names = [node.name for node in session.get_outputs()]

    def run(feeds: _Arrays) -> _Arrays:
        return dict(zip(names, session.run(names, feeds), strict=True))

    inputs = {node.name: node.shape for node in session.get_inputs()}
    return _Graph(inputs, tuple(names), session.get_modelmeta().custom_metadata_map, run)


def _by_openvino(path: Path, *, bf16: bool) -> _Graph:
    """A graph compiled for the processor, for one stream at a time."""
    core, reader = _openvino()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
    }
    try:
        model = reader.convert(reader.load(str(path)))
    except Exception as error:  # OpenVINO raises its own classes, not all of them errors of RuntimeError's kind
        raise ExportError(f"{path}: cannot be opened by OpenVINO ({_last_line(error)})") from None
    compiled = core.compile_model(model, "CPU", options)
    request, alone = compiled.create_infer_request(), threading.Lock()
    names = tuple(output.get_any_name() for output in model.outputs)  # compiled ones may have other names as well

    def run(feeds: _Arrays) -> _Arrays:
        with alone:  # its outputs are overwritten by the next
            request.infer(feeds, share_inputs=True)
            return {name: request.get_output_tensor(index).data.copy() for index, name in enumerate(names)}

    inputs = {
        each.get_any_name(): [axis.get_length() if axis.is_static else None for axis in each.partial_shape]
        for each in model.inputs
    }
    facts = {}
    for key in ("references", "size", "precision"):
        with contextlib.suppress(RuntimeError):  # OpenVINO's word for a key that is not there
            facts[key] = str(model.get_rt_info(["framework", key]).value)

    def rest() -> None:
        with alone:
            compiled.release_memory()

    return _Graph(inputs, names, facts, run, rest)


@functools.cache
def _openvino() -> tuple[Any, Any]:
    """OpenVINO's core and its reader of ONNX, of which there is one each for the life of the process.

    The core could read by itself, and would try the formats of others on a damaged file and print their complaints.
    Each core puts a stack of its own beneath the signal handlers of the thread that makes it, and takes it away when it
    goes (openvinotoolkit/openvino#11894): of two, the first to go leaves a stack behind that is no more, and the next
    signal, ^C even, is a segmentation fault.
    """
    try:
        import openvino
        from openvino.frontend import FrontEndManager
    except ImportError:
        raise UnavailableError("the package 'openvino' is not installed; try: pip install 'pdnet[openvino]'") from None
    return openvino.Core(), FrontEndManager().load_by_framework(framework="onnx")


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
