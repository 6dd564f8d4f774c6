"""The network as ONNX graphs: one of target and reference (the paper's figure 5), and two for streams.

    pdnet.onnx               target, reference -> probability
    reference_encoder.onnx   image -> key, value                  once a clip
    segmenter.onnx           image, key, value -> probability     once a frame

Preprocessing is the caller's, as `pdnet.data.transforms` does it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdnet.errors import ExportError
from pdnet.files import atomic_path
from pdnet.model import PDNet
from pdnet.model.streaming import ReferenceEncoder, Segmenter

PAIR, REFERENCE_ENCODER, SEGMENTER = "pdnet.onnx", "reference_encoder.onnx", "segmenter.onnx"
INPUTS = ("target", "reference")
OUTPUT = "probability"
#: What a target needs of its references: (B, N, K, h*w, d) each, N reference frames.
FEATURES = ("key", "value")
#: The same of the target itself, (B, 1, K, h*w, d): given by networks that refer to later frames than the first.
OWN_FEATURES = ("own_key", "own_value")


class PairGraph(nn.Module):
    """(target, reference) -> probability of portrait."""

    def __init__(self, network: PDNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, target: Tensor, reference: Tensor) -> Tensor:
        """(B, 3, S, S) and (B, 3, S, S), or (B, N, 3, S, S) for N references, normalised -> (B, 1, S, S) in 0..1."""
        output, _ = self.network(target, reference)
        return torch.sigmoid(output.logits)


def export_pair(network: PDNet, path: Path, *, size: int, opset: int, metadata: Mapping[str, str]) -> None:
    """Write the pair graph: float32, dynamic batch, fixed size; `metadata` goes into the file.

    Inputs `target` and `reference`, output `probability`; preprocessing is the caller's (`pdnet.data.transforms`).

    Raises:
        ExportError: the exporter or the ONNX checker refuses the graph.
    """
    graph = PairGraph(network.eval().to("cpu", torch.float32))
    references = network.config.references
    shape = (2, 3, size, size) if references == 1 else (2, references, 3, size, size)
    batch = torch.export.Dim("batch")
    inputs = {"target": (torch.zeros(2, 3, size, size), {0: batch}), "reference": (torch.zeros(shape), {0: batch})}
    _export(graph, path, inputs=inputs, outputs=(OUTPUT,), opset=opset, metadata=metadata)


def export_streaming(network: PDNet, folder: Path, *, size: int, opset: int, metadata: Mapping[str, str]) -> None:
    """Write the streaming pair, `reference_encoder.onnx` and `segmenter.onnx`: a clip's references are encoded once.

    As the pair graph: float32, dynamic batch, fixed size, preprocessing by the caller. The number of references is an
    axis of any length; the one that the network was trained with stands in the metadata as `references`.

    Raises:
        ExportError: the exporter or the ONNX checker refuses a graph, or the network has no IPDA: it refers to nothing.
    """
    if not network.config.ipda:
        raise ExportError(f"{folder}: a network without IPDA has no features of a reference to stream with")
    network = network.eval().to("cpu", torch.float32)
    metadata = {**metadata, "references": str(network.config.references)}
    batch, references = torch.export.Dim("batch"), torch.export.Dim("references")
    image = torch.zeros(2, 3, size, size)
    encoder = ReferenceEncoder(network)
    inputs = {"image": (image, {0: batch})}
    _export(encoder, folder / REFERENCE_ENCODER, inputs=inputs, outputs=FEATURES, opset=opset, metadata=metadata)
    with torch.inference_mode():
        features = (x.expand(-1, 2, -1, -1, -1).clone() for x in encoder(image))
    inputs |= {name: (x, {0: batch, 1: references}) for name, x in zip(FEATURES, features, strict=True)}
    segmenter = Segmenter(network)
    _export(segmenter, folder / SEGMENTER, inputs=inputs, outputs=segmenter.outputs, opset=opset, metadata=metadata)


def _export(
    graph: nn.Module,
    path: Path,
    *,
    inputs: Mapping[str, tuple[Tensor, dict[int, Any]]],
    outputs: Sequence[str],
    opset: int,
    metadata: Mapping[str, str],
) -> None:
    """Write a graph, given an example of each input and its axes of any length."""
    import onnx

    try:
        with quiet_exporter():
            program = torch.onnx.export(
                graph,
                tuple(example for example, _ in inputs.values()),
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes={name: axes for name, (_, axes) in inputs.items()},
                verbose=False,
            )
        assert program is not None
        model: Any = program.model_proto
        written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        if written != opset:  # the exporter falls back to its own where it cannot convert, and only warns
            raise ExportError(f"{path}: the network cannot be written with opset {opset}, only with {written}")
        forget_origins(model)
        for key, value in sorted(metadata.items()):
            model.metadata_props.add(key=key, value=value)
        onnx.checker.check_model(model, full_check=True)
    except (torch.onnx.OnnxExporterError, onnx.checker.ValidationError, RuntimeError) as error:
        raise ExportError(f"{path}: the network cannot be written as ONNX ({str(error).splitlines()[0]})") from error
    with atomic_path(path) as fresh:
        onnx.save(model, fresh)


def forget_origins(model: Any) -> None:
    """Remove what the exporter notes of its own doing: stack traces, which name the files of this machine.

    The same network gives the same bytes wherever it is exported.
    """
    graph = model.graph
    for noted in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del noted.metadata_props[:]


@contextlib.contextmanager
def quiet_exporter() -> Any:
    """Keep the exporter's progress lines and deprecation warnings from the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
