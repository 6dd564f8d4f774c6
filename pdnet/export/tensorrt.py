"""TensorRT engines from the exported graphs; `pdnet.inference.tensorrt_backend` runs them.

Written for TensorRT 10 and 11, where the two agree. Networks are strongly typed, in 11 always: an engine computes in
the types of the ONNX file. Half precision and int8 need the graph of that form; of float32 graphs the products may be
rounded to TF32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pdnet.errors import ExportError
from pdnet.export.config import TensorRTPrecision
from pdnet.export.onnx import FEATURES
from pdnet.files import write_bytes

#: The least, usual and largest shape of an input.
Range = tuple[tuple[int, ...], ...]

#: Least, usual and largest batch of an engine: a stream comes one frame at a time.
BATCHES = (1, 1, 8)
#: Reference frames of an engine that streams, for networks that were not trained with more.
MOST_REFERENCES = 4
#: No network takes smaller images.
LEAST_SIDE = 32
#: Memory that TensorRT may use beside weights and activations; its default is all that the device has.
WORKSPACE_BYTES = 4 << 30


def build_engine(
    trt: Any, source: Path, engine: Path, *, precision: TensorRTPrecision, timing_cache: Path | None = None
) -> dict[str, Range]:
    """Build an engine for the current CUDA device and write it; it runs on this TensorRT and this kind of device.

    Args:
        trt: the module, of `pdnet.inference.tensorrt_backend.require_tensorrt`.
        source: graph of `pdnet.export.onnx`, in the form that `precision` needs.
        engine: file to write.
        precision: `fp32` keeps all digits of float32 products; otherwise they may be rounded to TF32.
        timing_cache: what TensorRT remembers of its measurements, so that the next engine is built sooner; is read
            where it is there and of use here, and written.

    Returns:
        The shapes that the engine takes, by input.

    Raises:
        ExportError: TensorRT cannot read the graph or build an engine for it.
    """
    import onnx

    model = onnx.load(source)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    if not {"size", "references"} <= set(facts):
        raise ExportError(f"{source}: does not say its size and references; expected a graph of `pdnet export onnx`")
    fold_biases(model)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        reason = parser.get_error(0).desc() if parser.num_errors else "it does not say why"
        raise ExportError(f"{source}: TensorRT {trt.__version__} cannot read it ({reason.strip().splitlines()[0]})")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # set by default
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    ranges = input_ranges(shapes, size=int(facts["size"]), references=int(facts["references"]))
    profile = builder.create_optimization_profile()
    for name, shape_range in ranges.items():
        profile.set_shape(name, *shape_range)
    config.add_optimization_profile(profile)
    if timing_cache:
        _recall(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"{source}: TensorRT {trt.__version__} cannot build an engine; its messages above say why")
    write_bytes(engine, bytes(plan))
    if timing_cache:
        timing_cache.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(timing_cache, bytes(config.get_timing_cache().serialize()))
    return ranges


def input_ranges(shapes: Mapping[str, Sequence[int]], *, size: int, references: int) -> dict[str, Range]:
    """The optimisation profile of a graph: the shapes of its inputs that an engine takes.

    Images of any size may have half to twice the side that the network was trained at.

    Args:
        shapes: of the inputs, -1 for an axis of any length: batch, number of references, height, width, tokens.
        size: side S that the network was trained at; what the engine is fastest at.
        references: N that it was trained with, likewise.
    """
    sides = (max(LEAST_SIDE, -(-size // 2)), size, 2 * size)
    of_features = {0: BATCHES, 1: (1, references, max(references, MOST_REFERENCES)), 3: tuple(map(tokens, sides))}
    ranges = {}
    for name, shape in shapes.items():
        axes = of_features if name in FEATURES else {0: BATCHES} | dict.fromkeys(range(1, len(shape)), sides)
        lengths = [axes[axis] if length == -1 else (length,) * 3 for axis, length in enumerate(shape)]
        ranges[name] = tuple(zip(*lengths, strict=True))
    return ranges


def tokens(side: int) -> int:
    """h*w, the tokens of a square image in `key` and `value`: IPDA works at a quarter of stride 4, rounded down."""
    return max(1, -(-side // 4) // 4) ** 2


def fold_biases(model: Any) -> None:
    """Turn the biases of a quantised graph, 32-bit integers and their scale, into the float32 that they stand for.

    TensorRT dequantises no integers of 32 bits (onnx/onnx-tensorrt#850). The graph computes what it computed.
    """
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    constants = {each.name: each for each in graph.initializer}
    for node in list(graph.node):
        integers = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if integers is not None and integers.data_type == TensorProto.INT32:
            scale = numpy_helper.to_array(constants[node.input[1]])
            values = numpy_helper.to_array(integers).astype(scale.dtype) * scale  # symmetric: the zero point is 0
            graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
            graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in used:
            del graph.initializer[index]


def _recall(config: Any, path: Path) -> None:
    """Give the builder what it measured before; nothing, where that was another TensorRT or another kind of device."""
    for content in (path.read_bytes() if path.is_file() else b"", b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return
