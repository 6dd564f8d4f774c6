"""A module with TensorRT's documented Python interface, as far as it is used, whose engines compute on the CPU.

What the real library checks is checked: shapes within the profile, the version of an engine, addresses of all tensors.
ONNX Runtime computes. `stand_in` puts it in place, with streams that note who waits for whom.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import hashlib
import json
import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

_MAGIC = b"ftrt"


class FakeTensorRT(types.ModuleType):
    """`tensorrt`; `error` is what the parser finds; without `builds` the builder makes no plan."""

    NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})
    MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
    BuilderFlag = enum.Enum("BuilderFlag", ["TF32"])
    TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
    DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8"])

    class Logger:
        ERROR = "ERROR"

        def __init__(self, min_severity: str) -> None:
            assert min_severity == self.ERROR

    def __init__(self, *, version: str = "11.0.0", error: str | None = None, builds: bool = True) -> None:
        super().__init__("tensorrt")
        self.__version__, self.error, self.builds = version, error, builds
        self.builders: list[FakeBuilder] = []
        #: what happens on streams
        self.events: list[str] = []
        #: added to every probability
        self.wrong = 0.0

    def Builder(self, logger: Logger) -> FakeBuilder:  # noqa: N802 - TensorRT's name
        assert isinstance(logger, self.Logger)
        self.builders.append(FakeBuilder(self))
        return self.builders[-1]

    def OnnxParser(self, network: FakeNetwork, logger: Logger) -> FakeParser:  # noqa: N802 - TensorRT's name
        assert isinstance(logger, self.Logger)
        return FakeParser(network, self.error)

    def Runtime(self, logger: Logger) -> FakeRuntime:  # noqa: N802 - TensorRT's name
        assert isinstance(logger, self.Logger)
        return FakeRuntime(self)


class FakeBuilder:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt, self.flags, self.config = trt, 0, FakeConfig(trt)
        #: whether it had to measure
        self.measured = False

    def create_network(self, flags: int = 0) -> FakeNetwork:
        self.flags = flags
        return FakeNetwork()

    def create_builder_config(self) -> FakeConfig:
        return self.config

    def create_optimization_profile(self) -> FakeProfile:
        return FakeProfile()

    def build_serialized_network(self, network: FakeNetwork, config: FakeConfig) -> bytes | None:
        assert network.model, "the graph was not parsed"
        assert config is self.config
        if not self.trt.builds:
            return None
        (profile,) = config.profiles
        layers = hashlib.sha256(network.model).hexdigest()
        self.measured = config.cache is None or layers not in config.cache.entries
        if config.cache:
            config.cache.entries.add(layers)
        head = json.dumps({"version": self.trt.__version__, "profile": profile.shapes}).encode()
        return _MAGIC + head + b"\n" + network.model


class FakeNetwork:
    def __init__(self) -> None:
        self.model = b""
        self.inputs: list[types.SimpleNamespace] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> types.SimpleNamespace:
        return self.inputs[index]


class FakeParser:
    def __init__(self, network: FakeNetwork, error: str | None) -> None:
        self.network, self.error = network, error

    @property
    def num_errors(self) -> int:
        return 0 if self.error is None else 2

    def get_error(self, index: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(desc=lambda: (self.error, "what follows from it")[index])

    def parse(self, model: bytes, path: str | None = None) -> bool:
        self.network.model = model
        graph = onnx.load_from_string(model).graph
        constants = {each.name: each.data_type for each in graph.initializer}
        for node in graph.node:
            if node.op_type == "DequantizeLinear" and constants.get(node.input[0]) == onnx.TensorProto.INT32:
                self.error = f"{node.name}: only activation types allowed as input to this layer."
        for value in graph.input:
            axes = [axis.dim_value if axis.HasField("dim_value") else -1 for axis in value.type.tensor_type.shape.dim]
            self.network.inputs.append(types.SimpleNamespace(name=value.name, shape=axes))
        return self.error is None


class FakeProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        assert all(low <= usual <= high for low, usual, high in zip(min, opt, max, strict=True))
        self.shapes[input] = (tuple(min), tuple(opt), tuple(max))


class FakeTimingCache:
    def __init__(self, version: str, entries: Sequence[str]) -> None:
        self.version, self.entries = version, set(entries)

    def serialize(self) -> bytearray:  # not bytes: an IHostMemory is but a buffer
        return bytearray(json.dumps([self.version, sorted(self.entries)]).encode())


class FakeConfig:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt, self.flags = trt, {FakeTensorRT.BuilderFlag.TF32}
        self.pools: dict[Any, int] = {}
        self.profiles: list[FakeProfile] = []
        self.cache: FakeTimingCache | None = None

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self.pools[pool] = pool_size

    def clear_flag(self, flag: Any) -> None:
        self.flags.remove(flag)

    def add_optimization_profile(self, profile: FakeProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> FakeTimingCache | None:
        if not serialized_timing_cache:
            return FakeTimingCache(self.trt.__version__, ())
        try:
            return FakeTimingCache(*json.loads(serialized_timing_cache))
        except ValueError:
            return None

    def set_timing_cache(self, cache: FakeTimingCache, ignore_mismatch: bool) -> bool:
        if cache.version != self.trt.__version__ and not ignore_mismatch:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> FakeTimingCache | None:
        return self.cache


class FakeRuntime:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeEngine | None:
        if not serialized_engine.startswith(_MAGIC):
            return None
        head, model = serialized_engine.removeprefix(_MAGIC).split(b"\n", 1)
        facts = json.loads(head)
        return FakeEngine(self.trt, facts["profile"], model) if facts["version"] == self.trt.__version__ else None


class FakeEngine:
    def __init__(self, trt: FakeTensorRT, profile: dict[str, Any], model: bytes) -> None:
        self.trt, self.profile = trt, profile
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.inputs = [each.name for each in self.session.get_inputs()]
        self.outputs = [each.name for each in self.session.get_outputs()]
        formats = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(uint8)": "UINT8"}
        ends = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.formats = {each.name: trt.DataType[formats[each.type]] for each in ends}

    @property
    def num_io_tensors(self) -> int:
        return len(self.formats)

    def get_tensor_name(self, index: int) -> str:
        return list(self.formats)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if name in self.inputs else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.formats[name]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        return [tuple(shape) for shape in self.profile[name]]

    def create_execution_context(self) -> FakeContext:
        return FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.profile[name]
        fits = len(shape) == len(least) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))
        if fits:
            self.shapes[name] = shape
        return fits

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        zeros = {each: np.zeros(shape, self._dtype(each)) for each, shape in self.shapes.items()}
        return tuple(self.engine.session.run([name], zeros)[0].shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert isinstance(memory, int)
        self.addresses[name] = memory
        return memory != 0

    def execute_async_v3(self, stream_handle: int) -> bool:
        trt, engine = self.engine.trt, self.engine
        assert set(self.addresses) == set(engine.formats), "addresses of all tensors are needed"
        trt.events.append(f"{stream_handle} executes")
        found = engine.session.run(engine.outputs, {name: self._memory(name) for name in engine.inputs})
        for name, array in zip(engine.outputs, found, strict=True):
            self._memory(name)[...] = array + trt.wrong if name == "probability" else array
        return True

    def _dtype(self, name: str) -> Any:
        return {"FLOAT": np.float32, "HALF": np.float16, "UINT8": np.uint8}[self.engine.formats[name].name]

    def _memory(self, name: str) -> Any:
        """The tensor that lies at the address."""
        shape, dtype = self.get_tensor_shape(name), np.dtype(self._dtype(name))
        content = (ctypes.c_byte * (int(np.prod(shape)) * dtype.itemsize)).from_address(self.addresses[name])
        return np.frombuffer(content, dtype).reshape(shape)


class FakeStream:
    """A CUDA stream that notes for whom it waits."""

    def __init__(self, events: list[str], handle: int) -> None:
        self.events, self.cuda_stream = events, handle

    def wait_stream(self, stream: FakeStream) -> None:
        self.events.append(f"{self.cuda_stream} waits for {stream.cuda_stream}")


def stand_in(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> FakeTensorRT:
    """Let `import tensorrt` give the fake, and let torch's CUDA streams be numbered ones, the caller's 0."""
    trt = FakeTensorRT(**facts)
    handles = iter(range(1, 1000))
    caller = FakeStream(trt.events, 0)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: FakeStream(trt.events, next(handles)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: caller)
    return trt
