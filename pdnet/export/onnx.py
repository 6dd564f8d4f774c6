"""The network as one ONNX graph, target and reference in, mask out, as in the paper's figure 5."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdnet.errors import ExportError
from pdnet.files import atomic_path
from pdnet.model import PDNet

INPUTS = ("target", "reference")
OUTPUT = "probability"


class PairGraph(nn.Module):
    """(target, reference) -> probability of portrait."""

    def __init__(self, network: PDNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, target: Tensor, reference: Tensor) -> Tensor:
        """(B, 3, S, S) and (B, 3, S, S), or (B, N, 3, S, S) for N references, normalised -> (B, 1, S, S) in 0..1."""
        output, _ = self.network(target, reference)
        return torch.sigmoid(output.logits)


def export_pair(network: PDNet, path: Path, *, size: int, opset: int, metadata: dict[str, str]) -> None:
    """Write the pair graph: float32, dynamic batch, fixed size; `metadata` goes into the file.

    Inputs `target` and `reference`, output `probability`; preprocessing is the caller's (`pdnet.data.transforms`).

    Raises:
        ExportError: the exporter or the ONNX checker refuses the graph.
    """
    import onnx

    graph = PairGraph(network.eval().to("cpu", torch.float32))
    references = network.config.references
    shape = (2, 3, size, size) if references == 1 else (2, references, 3, size, size)
    target, reference = torch.zeros(2, 3, size, size), torch.zeros(shape)
    batch = torch.export.Dim("batch")
    try:
        with quiet_exporter():
            program = torch.onnx.export(
                graph,
                (target, reference),
                dynamo=True,
                opset_version=opset,
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                dynamic_shapes={"target": {0: batch}, "reference": {0: batch}},
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
