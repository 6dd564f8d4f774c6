"""The streaming ONNX pair as a model repository of NVIDIA's Triton Inference Server.

    reference_encoder/{config.pbtxt,1/model.onnx}   once a clip
    segmenter/{config.pbtxt,1/model.onnx}           once a frame
    README.md                                       how to start the server, and how to call it

The client keeps the features of a clip's references between requests; the server keeps nothing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from pdnet.data.streams import REFERENCE_LAG
from pdnet.data.transforms import MEAN, STD
from pdnet.errors import DataError, ExportError
from pdnet.export.onnx import FEATURES, OUTPUT, OWN_FEATURES, REFERENCE_ENCODER, SEGMENTER
from pdnet.files import atomic_folder, file_digest, read_object, write_text

#: Largest batch that the server makes of requests that wait.
MAX_BATCH = 8


class Tensor(NamedTuple):
    """An input or output of a graph.

    Attributes:
        name: in graph and configuration.
        kind: its numbers, as Triton calls them: `FP32`, `UINT8`.
        axes: those after the batch; their names where they are of any length.
    """

    name: str
    kind: str
    axes: tuple[int | str, ...]


class Graph(NamedTuple):
    """What an ONNX file says of itself.

    Attributes:
        inputs: in order.
        outputs: in order.
        facts: its metadata.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    facts: dict[str, str]


def write_repository(release: Path, out: Path, *, model: str, version: str) -> None:
    """Write the streaming pair of a release as a Triton model repository.

    Args:
        release: folder of a registered version: both ONNX files, parity.json, lineage.json.
        out: folder to write; one that pdnet wrote before is replaced.
        model: name of the registered model.
        version: its version.

    Raises:
        DataError: the folder is no release, or `out` holds other files.
        ExportError: the release has no streaming pair, or not the files that were compared with the network.
    """
    lineage = read_object(release / "lineage.json", ("git",))
    parity = read_object(release / "parity.json")
    compared = (parity.get("streaming") or {}).get("files")
    if not compared:
        raise ExportError(f"{model}/{version}: has no streaming pair; a network without IPDA refers to nothing")
    with atomic_folder(out) as folder:
        graphs = {}
        for name in (REFERENCE_ENCODER, SEGMENTER):
            source = release / name
            if not source.is_file():
                raise DataError(f"{source}: no such file; expected what the export wrote there")
            if (sha256 := file_digest(source)) != compared.get(name):
                raise ExportError(
                    f"{source}: not the file that was compared with the network: its SHA-256 is {sha256}, "
                    f"{release / 'parity.json'} says {compared.get(name)}"
                )
            facts = {
                "pdnet.model": model,
                "pdnet.version": version,
                "pdnet.sha256": sha256,
                "pdnet.git_commit": str(lineage["git"]["commit"] or ""),
            }
            served = Path(name).stem
            graphs[name] = read_graph(source)
            (folder / served / "1").mkdir(parents=True)
            shutil.copyfile(source, folder / served / "1" / "model.onnx")
            write_text(folder / served / "config.pbtxt", configuration(served, graphs[name], facts))
        write_text(folder / "README.md", manual(graphs[REFERENCE_ENCODER], graphs[SEGMENTER], model, version))


def read_graph(path: Path) -> Graph:
    """Inputs, outputs and metadata of an ONNX file whose first axis is the batch.

    Raises:
        ExportError: the file is no ONNX model.
    """
    import onnx

    try:
        content = onnx.load(str(path))
    except Exception as error:  # protobuf raises its own classes
        raise ExportError(f"{path}: not an ONNX file, or damaged ({str(error).splitlines()[0]})") from None

    def tensor(value: Any) -> Tensor:
        _, *axes = value.type.tensor_type.shape.dim
        kind = "UINT8" if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8 else "FP32"
        return Tensor(value.name, kind, tuple(_axis(axis) for axis in axes))

    facts = {entry.key: entry.value for entry in content.metadata_props}
    return Graph([tensor(x) for x in content.graph.input], [tensor(x) for x in content.graph.output], facts)


def configuration(name: str, graph: Graph, facts: dict[str, str]) -> str:
    """The text of config.pbtxt.

    Args:
        name: of the model in the repository.
        graph: what it runs.
        facts: to be found in the server's answer to `GET /v2/models/<name>/config`.
    """

    def tensors(field: str, entries: list[Tensor]) -> str:
        lines = (
            f"  {{ name: {_quoted(entry.name)} data_type: TYPE_{entry.kind} dims: [ {_dims(entry)} ] }}"
            for entry in entries
        )
        return f"{field} [\n" + ",\n".join(lines) + "\n]"

    told = "\n".join(
        f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
        for key, value in facts.items()
    )
    return f"""\
name: {_quoted(name)}
backend: "onnxruntime"
max_batch_size: {MAX_BATCH}
{tensors("input", graph.inputs)}
{tensors("output", graph.outputs)}
# Requests that wait are joined; none is held back for others.
dynamic_batching {{ }}
# Without a GPU: KIND_CPU.
instance_group [
  {{ count: 1 kind: KIND_GPU }}
]
{told}
"""


def manual(encoder: Graph, segmenter: Graph, model: str, version: str) -> str:
    """The README of a repository."""
    size, references = (
        int(encoder.facts.get("size", encoder.inputs[0].axes[-1])),
        int(segmenter.facts.get("references", 1)),
    )
    raw = encoder.inputs[0].kind == "UINT8"
    rows = "\n".join(
        f"| `{name}` | {side} | `{tensor.name}` | {tensor.kind} | {' x '.join(('batch', *map(str, tensor.axes)))} |"
        for name, graph in (("reference_encoder", encoder), ("segmenter", segmenter))
        for side, tensors in (("in", graph.inputs), ("out", graph.outputs))
        for tensor in tensors
    )
    several = (
        f"""
This network refers to {references} frames: a clip's first, and those {REFERENCE_LAG}, {2 * REFERENCE_LAG}, ... frames
before the present one (the first where there is none). `{OWN_FEATURES[0]}` and `{OWN_FEATURES[1]}` are those of the
frame just segmented: keep them for later, no frame is encoded twice. References are joined along axis 1:
`np.concatenate([first_key, earlier_key], axis=1)`.
"""
        if references > 1
        else ""
    )
    mean, std = (f"np.array({list(channels)}, np.float32)" for channels in (MEAN, STD))
    normalised = (
        "the graphs normalise them"
        if raw
        else "scaled to 0..1, then normalised by ImageNet's mean and standard deviation"
    )
    prepared = (
        "    return square[np.newaxis]"
        if raw
        else f"    mean = {mean}\n    std = {std}\n"
        "    return ((square / 255 - mean) / std).transpose(2, 0, 1)[np.newaxis]"
    )
    dtype, kind = ("np.uint8", "UINT8") if raw else ("np.float32", "FP32")
    key, value = FEATURES
    return f"""\
# {model}, version {version}, for Triton

Written by `pdnet export triton {model}/{version}`. `reference_encoder` runs once a clip, on its first frame;
`segmenter` runs once a frame, with what the encoder answered. The client keeps that between requests.

    docker run --rm --gpus all -p 8000:8000 -v "$PWD:/models:ro" \\
        nvcr.io/nvidia/tritonserver:YY.MM-py3 tritonserver --model-repository=/models

On a machine without a GPU leave out `--gpus all` and write `KIND_CPU` for `KIND_GPU` in both `config.pbtxt`.

| model | | tensor | numbers | shape |
|---|---|---|---|---|
{rows}
{several}
Frames are RGB, resized to {size} x {size} whatever their shape (bilinear, area-aware: Pillow);
{normalised}.
`{OUTPUT}` is portrait from 0.5 on; for a mask with a fine contour resize it to the frame (bilinear, corners
aligned) before comparing.

```python
import numpy as np
import tritonclient.http as triton
from PIL import Image

server = triton.InferenceServerClient("localhost:8000")


def prepare(frame):  # (H, W, 3) uint8 RGB
    square = np.asarray(Image.fromarray(frame).resize(({size}, {size}), Image.Resampling.BILINEAR), {dtype})
{prepared}


def ask(model, **tensors):
    kinds = {{name: "{kind}" if name == "image" else "FP32" for name in tensors}}
    inputs = [triton.InferInput(name, list(tensor.shape), kinds[name]) for name, tensor in tensors.items()]
    for given, tensor in zip(inputs, tensors.values()):
        given.set_data_from_numpy(tensor)
    return server.infer(model, inputs)


def segment(frames):  # of one clip
    features = ask("reference_encoder", image=prepare(frames[0]))
    {key}, {value} = features.as_numpy("{key}"), features.as_numpy("{value}")
    for frame in frames:
        yield ask("segmenter", image=prepare(frame), {key}={key}, {value}={value}).as_numpy("{OUTPUT}")[0, 0]
```
"""


def _axis(axis: Any) -> int | str:
    """Its length, or its name; `any` where it follows from others."""
    if axis.HasField("dim_value"):
        return int(axis.dim_value)
    return str(axis.dim_param) if axis.dim_param.isidentifier() else "any"


def _dims(tensor: Tensor) -> str:
    return ", ".join(str(axis) if isinstance(axis, int) else "-1" for axis in tensor.axes)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=True)
