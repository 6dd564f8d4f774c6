"""A TensorRT engine from the pair graph, and the engine run on torch tensors.

Written for TensorRT 10 and 11, where the two agree. Networks are strongly typed, in 11 always: the engine computes in
the types of the ONNX file, float32. Its products may be rounded to TF32; half precision needs a graph written in it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdnet.errors import ExportError, UnavailableError
from pdnet.export.config import TensorRTPrecision
from pdnet.export.onnx import INPUTS, OUTPUT
from pdnet.files import write_bytes

#: Least, optimal and largest batch of an engine: a stream comes one frame at a time.
BATCHES = (1, 1, 8)
#: Memory that TensorRT may use beside weights and activations; its default is all that the device has.
WORKSPACE_BYTES = 4 << 30


def require_tensorrt(device: torch.device) -> Any:
    """The module `tensorrt`, to be used on `device`.

    Raises:
        UnavailableError: the library or the GPU is missing; the message names all that is.
    """
    missing, trt = [], None
    try:
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:  # OSError: the package is there, its shared libraries are not
        missing.append(f"the package 'tensorrt' ({_first_line(str(error))})")
    if device.type != "cuda":
        missing.append(f"a CUDA device (the device is {device})")
    if missing:
        raise UnavailableError(f"a TensorRT engine cannot be built here: needs {' and '.join(missing)}")
    return trt


def build_engine(trt: Any, onnx: Path, engine: Path, *, precision: TensorRTPrecision) -> None:
    """Build an engine for the current CUDA device and write it; it runs on this TensorRT and this kind of device.

    Args:
        trt: the module, of `require_tensorrt`.
        onnx: pair graph of `pdnet.export.onnx`, dynamic batch and fixed size.
        engine: file to write.
        precision: of products and convolutions.

    Raises:
        ExportError: TensorRT cannot read the graph or build an engine for it.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx.read_bytes()):
        reason = parser.get_error(0).desc() if parser.num_errors else ""
        raise ExportError(f"{onnx}: TensorRT {trt.__version__} cannot read it ({_first_line(reason)})")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # set by default
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        profile.set_shape(tensor.name, *((batch, *tuple(tensor.shape)[1:]) for batch in BATCHES))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"{onnx}: TensorRT {trt.__version__} cannot build an engine; its messages above say why")
    write_bytes(engine, bytes(plan))


class TensorRTModel:
    """An engine of `build_engine`, run on torch tensors.

    Args:
        trt: the module, of `require_tensorrt`.
        path: the engine.
        device: the CUDA device that it was built on.

    Raises:
        ExportError: the file is not an engine of this TensorRT version and kind of device.
    """

    def __init__(self, trt: Any, path: Path, device: torch.device) -> None:
        self.device = device
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))  # must live as long as the engine
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise ExportError(f"{path}: TensorRT {trt.__version__} cannot open it; its messages above say why")
        self.context = self.engine.create_execution_context()
        # On the default stream TensorRT would wait for the whole device.
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        reference = tuple(self.engine.get_tensor_shape("reference"))
        self.size = int(reference[-1])
        self.references = int(reference[1]) if len(reference) == 5 else 1

    def probability(self, target: Tensor, reference: Tensor) -> Tensor:
        """(B, 3, S, S) and (B, 3, S, S), or (B, N, 3, S, S) for N references, float32 -> (B, 1, S, S) float32, CPU."""
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            inputs = dict(zip(INPUTS, (each.to(self.device).contiguous() for each in (target, reference)), strict=True))
            output = torch.empty((len(target), 1, self.size, self.size), device=self.device)
            done = [self.context.set_input_shape(name, tuple(tensor.shape)) for name, tensor in inputs.items()]
            for name, tensor in (*inputs.items(), (OUTPUT, output)):
                done.append(self.context.set_tensor_address(name, tensor.data_ptr()))
            if not (all(done) and self.context.execute_async_v3(self.stream.cuda_stream)):
                raise ExportError(f"the TensorRT engine refuses a batch of {len(target)}; its messages above say why")
            return output.cpu()  # waits for the stream


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "it does not say why")
