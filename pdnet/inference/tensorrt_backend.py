"""Engines of `pdnet export tensorrt`, run on torch tensors. Written for TensorRT 10 and 11, where the two agree."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdnet.errors import ExportError, UnavailableError
from pdnet.inference.session import Features, Output

#: The engines that stream.
REFERENCE_ENCODER, SEGMENTER = "reference_encoder.engine", "segmenter.engine"
_FEATURES, _OWN = ("key", "value"), ("own_key", "own_value")


def require_tensorrt(device: torch.device, *, purpose: str) -> Any:
    """The module `tensorrt`, to be used on `device`.

    Args:
        device: where.
        purpose: what is to be done with an engine, for the message: `built`, `run`.

    Raises:
        UnavailableError: the library or the GPU is missing; the message names all that is.
    """
    missing, trt = [], None
    try:
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:  # OSError: the package is there, its shared libraries are not
        missing.append(f"the package 'tensorrt' ({(str(error).strip().splitlines() or ['it does not say why'])[0]})")
    if device.type != "cuda":
        missing.append(f"a CUDA device (the device is {device})")
    if missing:
        raise UnavailableError(f"a TensorRT engine cannot be {purpose} here: needs {' and '.join(missing)}")
    return trt


class Engine:
    """An engine, which takes and gives tensors by name.

    Args:
        trt: the module, of `require_tensorrt`.
        path: the engine.
        device: CUDA device of the kind that it was built on.

    Attributes:
        ranges: the least, usual and largest shape of each input.
        outputs: names.

    Raises:
        ExportError: the file is missing, or no engine of this TensorRT version and kind of device.
    """

    def __init__(self, trt: Any, path: Path, device: torch.device) -> None:
        self.path, self.device = path, device
        if not path.is_file():
            raise ExportError(f"{path}: no such file; expected an engine of `pdnet export tensorrt`")
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))  # must live as long as the engine
        with torch.cuda.device(device):
            self._engine = engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if engine is None:
                raise ExportError(
                    f"{path}: TensorRT {trt.__version__} cannot open it; its messages above say why. An engine is of "
                    "one version and one kind of GPU: `pdnet export tensorrt` builds another"
                )
            self._context, self._alone = engine.create_execution_context(), threading.Lock()
            # On the default stream TensorRT would wait for the whole device.
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        formats = {
            trt.DataType.FLOAT: torch.float32,
            trt.DataType.HALF: torch.float16,
            trt.DataType.UINT8: torch.uint8,
        }
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._formats = {name: formats[engine.get_tensor_dtype(name)] for name in names}
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.ranges = {name: tuple(map(tuple, engine.get_tensor_profile_shape(name, 0))) for name in inputs}
        self.outputs = tuple(name for name in names if name not in inputs)

    def check(self, inputs: Sequence[str], outputs: Sequence[str]) -> Engine:
        """This engine, if it has these inputs, and these outputs among others.

        Raises:
            ExportError: it does not.
        """
        if set(self.ranges) != set(inputs) or not set(outputs) <= set(self.outputs):
            raise ExportError(
                f"{self.path}: inputs {', '.join(self.ranges)} and outputs {', '.join(self.outputs)}; "
                f"expected {' and '.join(inputs)}, and {' and '.join(outputs)}"
            )
        return self

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs, on the device, for inputs from anywhere; more than the engine's largest batch in portions.

        Every answer is memory of its own: sessions keep features from frame to frame, so no buffer may serve twice.
        torch's allocator hands out again what has been let go of, so that costs no allocation by CUDA.

        Raises:
            ExportError: the engine does not take these shapes.
        """
        most = min(int(shapes[2][0]) for shapes in self.ranges.values())
        batch = max(len(inputs[name]) for name in self.ranges)
        parts = [
            self._run({name: inputs[name][start : start + most] for name in self.ranges})
            for start in range(0, batch, most)
        ]
        return parts[0] if len(parts) == 1 else {name: torch.cat([x[name] for x in parts]) for name in self.outputs}

    def _run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        context = self._context
        with self._alone, torch.cuda.device(self.device):  # what it is told holds until it is told otherwise
            feeds = {name: x.to(self.device, self._formats[name]).contiguous() for name, x in inputs.items()}
            for name, tensor in feeds.items():
                if not context.set_input_shape(name, tuple(tensor.shape)):
                    least, _, most = (" x ".join(map(str, shape)) for shape in self.ranges[name])
                    shape = " x ".join(map(str, tensor.shape))
                    raise ExportError(f"{self.path}: '{name}' is {shape}; the engine takes {least} to {most}")
            if unknown := context.infer_shapes():
                raise ExportError(f"{self.path}: TensorRT does not know the shape of {', '.join(unknown)}")
            found = {
                name: torch.empty(tuple(context.get_tensor_shape(name)), dtype=self._formats[name], device=self.device)
                for name in self.outputs
            }
            done = [context.set_tensor_address(name, x.data_ptr()) for name, x in (feeds | found).items()]
            # All tensors are of the caller's stream. As each stream waits for the other, they may go there as well.
            caller = torch.cuda.current_stream()
            self._stream.wait_stream(caller)
            done.append(context.execute_async_v3(self._stream.cuda_stream))
            caller.wait_stream(self._stream)
        if not all(done):
            raise ExportError(f"{self.path}: the engine failed; TensorRT's messages above say why")
        return found


class TensorRTModel:
    """The engine of the pair graph, as `pdnet.inference.onnx_backend.PairModel`.

    Args:
        trt, path, device: as of `Engine`.

    Raises:
        ExportError: the file is not such an engine, or not of this TensorRT version and kind of device.
    """

    def __init__(self, trt: Any, path: Path, device: torch.device) -> None:
        self._engine = Engine(trt, path, device).check(("target", "reference"), ("probability",))
        self.size, self.raw = _image(self._engine, "target")
        reference = self._engine.ranges["reference"][1]
        self.references = reference[1] if len(reference) == 5 else 1

    def probability(self, target: Tensor, reference: Tensor) -> Tensor:
        """(B, *image) and (B, *image), or (B, N, *image) for N references -> (B, 1, S, S) float32, on the CPU."""
        return self._engine.run({"target": target, "reference": reference})["probability"].cpu()


class TensorRTBackend:
    """The engines that stream: references are encoded once a clip, and stay on the GPU.

    Args:
        trt: the module, of `require_tensorrt`.
        folder: with reference_encoder.engine and segmenter.engine.
        device: CUDA device of the kind that they were built on.
        precision: in which they were built, for the name.

    Raises:
        ExportError: a file is missing, not such an engine, or not of this TensorRT version and kind of device.
    """

    def __init__(self, trt: Any, folder: Path, device: torch.device, *, precision: str) -> None:
        self.name = f"TensorRT, {precision}"
        self._encoder = Engine(trt, folder / REFERENCE_ENCODER, device).check(("image",), _FEATURES)
        self._segmenter = Engine(trt, folder / SEGMENTER, device).check(("image", *_FEATURES), ("probability",))
        self.size, self.raw = _image(self._segmenter, "image")
        self.references = self._segmenter.ranges["key"][1][1]

    def encode(self, image: Tensor) -> Features:
        """Key and value of reference frames, on the device."""
        found = self._encoder.run({"image": image})
        return tuple(found[name] for name in _FEATURES)

    def segment(self, image: Tensor, references: Sequence[Features]) -> Output:
        """Segment a batch of B against N references of a batch of B or of 1."""
        feeds = {"image": image}
        for name, tensors in zip(_FEATURES, zip(*references, strict=True), strict=True):
            frames = [x.expand(len(image), *x.shape[1:]) for x in tensors]
            feeds[name] = frames[0] if len(frames) == 1 else torch.cat(frames, dim=1)
        found = self._segmenter.run(feeds)
        own = tuple(found[name] for name in _OWN) if _OWN[0] in found else None
        probability, saliency, part_prob = (
            found[name].cpu() if name in found else None for name in ("probability", "saliency", "part_prob")
        )
        assert probability is not None
        return Output(probability, saliency, part_prob, own)


def _image(engine: Engine, name: str) -> tuple[int, bool]:
    """Side S of an engine's images, the usual one where it takes any, and whether they are uint8 (S, S, 3)."""
    shape = engine.ranges[name][1]
    return shape[2], shape[-1] == 3
