"""Exported float32 graphs in smaller number formats: half precision, and eight-bit integers."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from pdnet.errors import ExportError
from pdnet.export.onnx import FEATURES, OWN_FEATURES, quiet_exporter, save

if TYPE_CHECKING:
    from onnx import ModelProto

Feeds = Mapping[str, npt.NDArray[Any]]

#: Left in float32 by `to_half`: sums of exponentials and what comes from them. Of shapes, `Range`, `Min`, `Max`.
FLOAT_ISLANDS = ("Softmax", "Sigmoid", "Range", "Min", "Max")


def to_half(source: Path, path: Path) -> None:
    """Write a float32 graph in float16, with softmax and sigmoid in float32.

    Images, probabilities and part maps stay as they are, and frames are normalised in float32; the features that go
    from one graph to the other are float16.

    Raises:
        ExportError: the converter or the ONNX checker refuses the graph.
    """
    import onnx
    import onnx_ir
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    ends = [*model.graph.input, *model.graph.output]
    kept = [end.name for end in ends if end.name not in FEATURES + OWN_FEATURES]
    try:
        half = convert_float_to_float16(
            model, keep_io_types=kept, op_block_list=FLOAT_ISLANDS, node_block_list=_normalisation(model)
        )
        del half.graph.value_info[:]  # of what stays in float32 it says float16
        sorted_model = onnx_ir.serde.deserialize_model(half)  # the converter appends its casts at the end
        sorted_model.graph.sort()
        save(onnx_ir.serde.serialize_model(sorted_model), path, {"precision": "fp16"})
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ExportError(f"{source}: cannot be written in float16 ({str(error).splitlines()[0]})") from error


def _normalisation(model: ModelProto) -> list[str]:
    """The nodes that make normalised images of frames, which are bytes."""
    import onnx

    frames = {each.name for each in model.graph.input if each.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    nodes = []
    for node in model.graph.node:
        if node.op_type in ("Cast", "Transpose", "Sub", "Div") and not frames.isdisjoint(node.input):
            frames |= set(node.output)
            if node.op_type in ("Sub", "Div"):  # a half holds every byte as it is
                nodes.append(node.name)
    return nodes


def to_int8(source: Path, path: Path, feeds: Iterable[Feeds], *, keep: Collection[str] = ()) -> None:
    """Write a float32 graph whose convolutions multiply eight-bit integers.

    Static and symmetric: weights per output channel, activations per tensor, by the largest value that the feeds bring
    about; as pairs of QuantizeLinear and DequantizeLinear, which ONNX Runtime, OpenVINO and TensorRT all take.

    Args:
        source: the graph.
        path: file to write.
        feeds: inputs of the graph, from training frames.
        keep: convolutions that stay in float32, by their names in the network; the metadata list them as
            `float_layers`.

    Raises:
        ExportError: the quantiser or the ONNX checker refuses the graph.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as scratch, quiet_exporter():
        inferred, quantised = Path(scratch) / "inferred.onnx", Path(scratch) / "quantised.onnx"
        try:
            quant_pre_process(source, inferred, skip_optimization=True, skip_symbolic_shape=True)
            quantize_static(
                inferred,
                quantised,
                _reader(feeds),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=[
                    node for name, nodes in convolutions(source).items() if name in keep for node in nodes
                ],
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
            )
            model = onnx.load(quantised)
            save(model, path, {"precision": "int8", "float_layers": " ".join(sorted(keep))})
        except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
            raise ExportError(f"{source}: cannot be quantised ({str(error).splitlines()[0]})") from error


def convolutions(path: Path) -> dict[str, list[str]]:
    """The convolutions of a float32 graph: the name in the network -> the names in the graph, a call of it each."""
    import onnx

    found: dict[str, list[str]] = {}
    for node in onnx.load(path).graph.node:
        if node.op_type == "Conv":
            found.setdefault(_layer(node), []).append(node.name)
    return found


def losses(source: Path, quantised: Path, feeds: Iterable[Feeds]) -> dict[str, float]:
    """What each convolution loses when weights and input become integers, by its name in the network.

    Returns:
        Signal to noise in dB, of what loses more, the weights or the input: the lower, the more is lost. Convolutions
        that stayed in float are not in it.
    """
    import onnx
    from onnxruntime.quantization import qdq_loss_debug as debug

    with tempfile.TemporaryDirectory() as scratch, quiet_exporter():
        watched = Path(scratch) / "watched.onnx"
        debug.modify_model_output_intermediate_tensors(quantised, watched)
        matching = debug.create_activation_matching(debug.collect_activations(str(watched), _reader(feeds)))
        ratio = debug.compute_signal_to_quantization_noice_ratio
        of_inputs = {name: ratio(each["pre_qdq"], each["post_qdq"]) for name, each in matching.items()}
        of_weights = debug.compute_weight_error(debug.create_weight_matching(str(source), str(quantised)))
    found: dict[str, float] = {}
    for node in onnx.load(source).graph.node:
        if node.op_type == "Conv" and node.input[1] in of_weights:
            lost = (of_weights[node.input[1]], of_inputs.get(node.input[0], float("inf")))
            found[_layer(node)] = min(*lost, found.get(_layer(node), float("inf")))
    return found


def _layer(convolution: Any) -> str:
    """The name in the network of a convolution of a graph, which has the network as `network`."""
    return str(convolution.input[1]).rpartition("network.")[2].removesuffix(".weight")


def _reader(feeds: Iterable[Feeds]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> Any:
            return next(self._feeds, None)

    return Reader()
