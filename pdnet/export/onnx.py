"""The network as ONNX graphs: one of target and reference (the paper's figure 5), and two for streams.

    pdnet.onnx               target, reference -> probability
    reference_encoder.onnx   image -> key, value                  once a clip
    segmenter.onnx           image, key, value -> probability     once a frame

Images are resized to squares by the caller, and normalised by the caller or the graph.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pdnet.data.transforms import MEAN, STD
from pdnet.errors import ExportError
from pdnet.export.config import GraphInput
from pdnet.files import atomic_path
from pdnet.model import PDNet
from pdnet.model.folding import fold_batch_norm
from pdnet.model.streaming import ReferenceEncoder, Segmenter

PAIR, REFERENCE_ENCODER, SEGMENTER = "pdnet.onnx", "reference_encoder.onnx", "segmenter.onnx"
INPUTS = ("target", "reference")
OUTPUT = "probability"
#: What a target needs of its references: (B, N, K, h*w, d) each, N reference frames.
FEATURES = ("key", "value")
#: The same of the target itself, (B, 1, K, h*w, d): given by networks that refer to later frames than the first.
OWN_FEATURES = ("own_key", "own_value")

_PREPROCESSING = {
    "normalised": "RGB, resized to the input size, /255, ImageNet mean and standard deviation, channels first",
    "frames": "RGB, resized to the input size, uint8, channels last",
}


class Form(NamedTuple):
    """How the graphs of a network are written.

    Attributes:
        size: side S of the images that the network was trained at.
        opset: ONNX operator set.
        input: what the graphs take, see `pdnet.export.config.ExportConfig`.
        any_size: images may have any height and width; S of the example only.
        metadata: goes into the file, beside size, references and preprocessing.
    """

    size: int
    opset: int
    input: GraphInput = "normalised"
    any_size: bool = False
    metadata: Mapping[str, str] = {}


class PairGraph(nn.Module):
    """(target, reference) -> probability of portrait."""

    def __init__(self, network: PDNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, target: Tensor, reference: Tensor) -> Tensor:
        """(B, 3, S, S) and (B, 3, S, S), or (B, N, 3, S, S) for N references, normalised -> (B, 1, S, S) in 0..1."""
        output, _ = self.network(target, reference)
        return torch.sigmoid(output.logits)


class FromFrames(nn.Module):
    """A graph whose first `images` inputs are frames, which it normalises."""

    def __init__(self, graph: nn.Module, images: int) -> None:
        super().__init__()
        self.inner, self.images = graph, images
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(STD).view(3, 1, 1))

    def forward(self, *inputs: Tensor) -> Any:
        """(..., H, W, 3) uint8 RGB for the images; the other inputs are handed on."""
        images = ((x.float().movedim(-1, -3) - self.mean) / self.std for x in inputs[: self.images])
        return self.inner(*images, *inputs[self.images :])


def export_pair(network: PDNet, path: Path, form: Form) -> None:
    """Write the pair graph, float32, of a batch of any length.

    Raises:
        ExportError: the exporter or the ONNX checker refuses the graph.
    """
    references = network.config.references
    images = {"target": (), "reference": () if references == 1 else (references,)}
    _export(PairGraph(_ready(network)), path, form, network, images=images, features={}, outputs=(OUTPUT,))


def export_streaming(network: PDNet, folder: Path, form: Form) -> None:
    """Write the streaming pair, `reference_encoder.onnx` and `segmenter.onnx`: a clip's references are encoded once.

    float32, of a batch of any length. The number of references is an axis of any length; the one that the network was
    trained with stands in the metadata as `references`.

    Raises:
        ExportError: the exporter or the ONNX checker refuses a graph, or the network has no IPDA: it refers to nothing.
    """
    if not network.config.ipda:
        raise ExportError(f"{folder}: a network without IPDA has no features of a reference to stream with")
    ready = _ready(network)
    encoder, segmenter = ReferenceEncoder(ready), Segmenter(ready)
    images: dict[str, tuple[int, ...]] = {"image": ()}
    _export(encoder, folder / REFERENCE_ENCODER, form, network, images=images, features={}, outputs=FEATURES)
    with torch.inference_mode():
        example = encoder(torch.zeros(2, 3, form.size, form.size))
    features = {name: x.expand(-1, 2, -1, -1, -1).clone() for name, x in zip(FEATURES, example, strict=True)}
    outputs = segmenter.outputs
    _export(segmenter, folder / SEGMENTER, form, network, images=images, features=features, outputs=outputs)


def _ready(network: PDNet) -> PDNet:
    """The network as it is exported; its batch normalisations are folded here, not left to every runtime."""
    return fold_batch_norm(network).to("cpu", torch.float32)


def _export(
    graph: nn.Module,
    path: Path,
    form: Form,
    network: PDNet,
    *,
    images: Mapping[str, tuple[int, ...]],
    features: Mapping[str, Tensor],
    outputs: Sequence[str],
) -> None:
    """Write a graph.

    Args:
        graph: takes images, then features.
        path: file to write.
        form: how.
        network: says its number of references.
        images: by name, their axes between batch and image.
        features: an example of each.
        outputs: names.
    """
    import onnx

    dim = torch.export.Dim
    batch, references, tokens, height, width = map(dim, ("batch", "references", "tokens", "height", "width"))
    raw, side = form.input == "frames", form.size
    examples: list[Tensor] = []
    axes: dict[str, dict[int, Any]] = {}
    for name, between in images.items():
        shape = (2, *between, *((side, side, 3) if raw else (3, side, side)))
        examples.append(torch.zeros(shape, dtype=torch.uint8 if raw else torch.float32))
        first = 1 + len(between) + (0 if raw else 1)
        axes[name] = {0: batch} | ({first: height, first + 1: width} if form.any_size else {})
    for name, example in features.items():
        examples.append(example)
        axes[name] = {0: batch, 1: references} | ({3: tokens} if form.any_size else {})
    metadata = {"size": str(side), "references": str(network.config.references)}
    metadata |= {"preprocessing": _PREPROCESSING[form.input], "precision": "fp32", **form.metadata}
    shapes: Any = axes
    if raw:
        graph, shapes = FromFrames(graph, len(images)), {"inputs": tuple(axes.values())}
    try:
        with quiet_exporter():
            program = torch.onnx.export(
                graph.eval(),
                tuple(examples),
                dynamo=True,
                opset_version=form.opset,
                input_names=list(axes),
                output_names=list(outputs),
                dynamic_shapes=shapes,
                verbose=False,
            )
        assert program is not None
        model: Any = program.model_proto
        written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        if written != form.opset:  # the exporter falls back to its own where it cannot convert, and only warns
            raise ExportError(f"{path}: the network cannot be written with opset {form.opset}, only with {written}")
        forget_origins(model)
        save(model, path, metadata)
    except (torch.onnx.OnnxExporterError, onnx.checker.ValidationError, RuntimeError) as error:
        raise ExportError(f"{path}: the network cannot be written as ONNX ({str(error).splitlines()[0]})") from error


def save(model: Any, path: Path, metadata: Mapping[str, str]) -> None:
    """Check a model and write it, with metadata beside what it has."""
    import onnx

    known = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    for key, value in sorted((known | dict(metadata)).items()):
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
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
