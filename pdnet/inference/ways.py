"""The ways of running a network on this machine, for comparison: what `pdnet bench` measures."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pdnet.data.io import UInt8Array, write_png
from pdnet.devices import pick_dtype
from pdnet.errors import UnavailableError
from pdnet.inference import composite
from pdnet.inference.backends import open_backend
from pdnet.inference.bench import (
    Comparison,
    Measure,
    bench_record,
    compare,
    flushed_denormals,
    peak_memory,
)
from pdnet.inference.onnx_backend import OnnxModel, PairBackend, pair_reference
from pdnet.inference.session import Backend, Features, Output, PortraitSession
from pdnet.inference.tensorrt_backend import require_tensorrt
from pdnet.inference.torch_backend import require_compiler
from pdnet.model import ModelConfig, PDNet
from pdnet.progress import track
from pdnet.weights import load_model, model_facts

#: A frame of the 480p data sets, (height, width).
FRAME = (480, 854)
#: Folders beside the graphs: those in other number formats, engines.
FORMS, ENGINES = ("fp16", "int8"), "tensorrt"
WEIGHTS, PAIR_GRAPH, GRAPHS = "model.safetensors", "pdnet.onnx", ("reference_encoder.onnx", "segmenter.onnx")

#: Opens a backend for the network that lies in a folder; a function of a module, or `functools.partial` of one.
Way = Callable[[Path], Backend]


class Variant(NamedTuple):
    """A network that has more of something.

    Attributes:
        table: the title of what is compared.
        names: what the network itself has, and what this one has: `N = 1`, `N = 2`.
        folder: of this one.
    """

    table: str
    names: tuple[str, str]
    folder: Path


class Subject(NamedTuple):
    """A network as it lies on the disk, where other processes can open it too.

    Attributes:
        folder: with `WEIGHTS`, `GRAPHS`, or both; without weights, with `PAIR_GRAPH`; with `FORMS` and `ENGINES` that
            there are.
        size: side of its inputs.
        source: what people call it.
        architecture: None where there are graphs alone.
        variants: to be held against it.
    """

    folder: Path
    size: int
    source: str
    architecture: ModelConfig | None = None
    variants: tuple[Variant, ...] = ()


class Ways(NamedTuple):
    """How the network can be run here.

    Attributes:
        pairs: with both frames encoded each time; the first is the baseline.
        streaming: with the reference cached.
        not_here: what was left out, and why.
    """

    pairs: Mapping[str, Way]
    streaming: Mapping[str, Way]
    not_here: Mapping[str, str]


class PairFormulation:
    """The network as the paper states it: target and reference are encoded, both, for every frame; float32, eager.

    Args:
        network: taken as it is.
        size: side S of its inputs.
        device: where it runs.
    """

    name, raw = "pair formulation", False

    def __init__(self, network: PDNet, *, size: int, device: torch.device) -> None:
        self.size, self.references = size, network.config.references
        self._network, self._device = network.eval().to(device), device

    def encode(self, image: Tensor) -> Features:
        """The frames themselves: nothing of them is computed before they are needed."""
        return (image,)

    def segment(self, image: Tensor, references: Sequence[Features]) -> Output:
        """Segment (B, 3, S, S) float32 against N references of a batch of B or of 1."""
        with torch.inference_mode():
            reference = pair_reference(image, references).to(self._device)
            output, _ = self._network(image.to(self._device), reference)
            return Output(torch.sigmoid(output.logits).cpu(), own=(image,) if self.references > 1 else None)


class Replay:
    """Gives one answer again and again at once: what a session takes beside it is pre- and post-processing.

    Args:
        output: of one frame.
        size: side S of the inputs.
    """

    name, references, raw = "replay", 1, False

    def __init__(self, output: Output, *, size: int) -> None:
        self.size, self._output = size, output

    def encode(self, image: Tensor) -> Features:
        """A batch of frames, as it is."""
        return (image,)

    def segment(self, image: Tensor, references: Sequence[Features]) -> Output:  # noqa: ARG002 - as backends have them
        """The stored answer."""
        return self._output


def ways_of(subject: Subject, device: torch.device, *, compiled: bool = False) -> Ways:
    """The ways of running a network that this machine has."""
    not_here: dict[str, str] = {}
    on_cpu, precisions = device.type == "cpu", ["fp32", "bf16"]
    if not on_cpu:
        precisions.append("fp16")
    elif pick_dtype("auto", device) != torch.bfloat16:
        precisions.remove("bf16")
        not_here["bf16"] = "this processor does not multiply it in hardware (AMX)"

    streaming: dict[str, Way] = {}
    pairs: dict[str, Way] = {"pair graph, ONNX Runtime": open_pair_graph}
    if (subject.folder / WEIGHTS).is_file():
        pairs = {"pair formulation": partial(open_pair, device=device)}
        for precision in precisions:
            way = partial(open_backend, name="torch", device=str(device), precision=precision)
            streaming[f"torch, {precision}"] = way
        name, why = f"torch, {precisions[-1]}, compiled", _why_not_compiled(compiled, device)
        if why:
            not_here[name] = why
        else:
            precision = precisions[-1]
            streaming[name] = partial(open_backend, device=str(device), precision=precision, compiled=True)

    for ways, missing in (_by_graphs(subject, device, precisions), _by_engines(subject, device)):
        streaming |= ways
        not_here |= missing
    return Ways(pairs, streaming, not_here)


def _by_graphs(
    subject: Subject, device: torch.device, precisions: Sequence[str]
) -> tuple[dict[str, Way], dict[str, str]]:
    """What runs exported graphs, and why not; `precisions` are those that this processor is fast in."""
    found: dict[str, Way] = {}
    not_here = {}
    graphs = all((subject.folder / name).is_file() for name in GRAPHS)
    stored = [form for form in FORMS if (subject.folder / form).is_dir()]
    for title, runtime, kinds in (
        ("ONNX Runtime", "onnxruntime", ["fp32", *stored]),
        ("OpenVINO", "openvino", [*precisions, *(form for form in stored if form == "int8")]),
    ):
        if importlib.util.find_spec(runtime) is None:
            not_here[title] = f"the package '{runtime}' is not installed"
        elif device.type != "cpu" or not graphs:
            not_here[title] = "there are no graphs" if device.type == "cpu" else "runs graphs on the CPU"
        else:
            for precision in kinds:
                found[f"{title}, {precision}"] = partial(open_backend, name=runtime, device="cpu", precision=precision)
    return found, not_here


def _by_engines(subject: Subject, device: torch.device) -> tuple[dict[str, Way], dict[str, str]]:
    """TensorRT, or why not."""
    try:
        require_tensorrt(device, purpose="timed")
    except UnavailableError as error:
        return {}, {"TensorRT": str(error)}
    if not (subject.folder / ENGINES).is_dir():
        return {}, {"TensorRT": "there are no engines"}
    return {"TensorRT": partial(open_backend, name="tensorrt", device=str(device))}, {}


def _why_not_compiled(wanted: bool, device: torch.device) -> str:
    if not wanted:
        return "takes a minute; --compile measures it"
    try:
        require_compiler(device)
    except UnavailableError as error:
        return str(error)
    return ""


def open_pair(folder: Path, *, device: torch.device) -> Backend:
    """The pair formulation of the weights in a folder."""
    return PairFormulation(load_model(folder / WEIGHTS), size=model_facts(folder / WEIGHTS)["size"], device=device)


def open_pair_graph(folder: Path) -> Backend:
    """The pair graph in a folder, by ONNX Runtime."""
    return PairBackend(OnnxModel(folder / PAIR_GRAPH))


def measure(
    subject: Subject,
    ways: Ways,
    *,
    device: torch.device,
    rounds: int,
    memory: bool = False,
    batch: int | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Compare the ways of running a network; the answer has the form that `pdnet.inference.bench` describes.

    Args:
        subject: the network.
        ways: of `ways_of`, or more of them.
        device: for the record.
        rounds: how often each is timed.
        memory: measure peak memory as well, in a process each.
        batch: frames at once, to be held against the same frames one by one.
        command: for the record.
    """
    frame = some_frame()

    def opened(some: Mapping[str, Way], folder: Path) -> dict[str, PortraitSession]:
        return {name: PortraitSession(way(folder), reference=frame) for name, way in some.items()}

    with flushed_denormals() as flushed:
        streaming = opened(ways.streaming, subject.folder)
        everything = opened(ways.pairs, subject.folder) | streaming
        differences = largest_differences(everything, frame)
        comparisons = [compare_networks(everything, frame, rounds=rounds)]
        comparisons.append(compare_streams(streaming, frame, rounds=rounds))
        if batch is not None:
            for name, session in streaming.items():
                comparisons.append(compare_batch(name, session, frame, batch=batch, rounds=rounds))
        for table, (base, more), folder in subject.variants:
            for name, way in ways.streaming.items():  # one at a time: the two of a pair next to each other
                (other,) = opened({name: way}, folder).values()
                both = {f"{name}, {base}": streaming[name], f"{name}, {more}": other}
                comparisons.append(compare_networks(both, frame, rounds=rounds, table=table, measure="cost"))
    peaks = None
    if memory:
        each = track([*ways.pairs.items(), *ways.streaming.items()], "memory")
        threads = torch.get_num_threads()
        peaks = {
            name: peak_memory(partial(way, subject.folder), frame, device=device, threads=threads) for name, way in each
        }
    return bench_record(
        comparisons,
        command=command,
        device=device,
        flush_denormals=flushed,
        model={
            "source": subject.source,
            "architecture": dataclasses.asdict(subject.architecture) if subject.architecture else None,
            "size": subject.size,
            "frame": list(FRAME),
        },
        differences=differences,
        memory=peaks,
        not_measured=ways.not_here,
    )


def compare_networks(
    sessions: Mapping[str, PortraitSession],
    frame: UInt8Array,
    *,
    rounds: int,
    table: str = "network alone",
    measure: Measure = "faster",
) -> Comparison:
    """The networks alone on one prepared frame, references cached where a way can: what the paper's FPS measures.

    Args:
        sessions: by name, the baseline first.
        frame: (H, W, 3) uint8.
        rounds: how often each is timed.
        table: a title.
        measure: how people are to read the ratios.
    """
    alternatives = {name: partial(session.infer, session.to_input(frame)) for name, session in sessions.items()}
    return compare(alternatives, rounds=rounds, table=table, measure=measure)


def compare_streams(sessions: Mapping[str, PortraitSession], frame: UInt8Array, *, rounds: int) -> Comparison:
    """From a frame to its mask as a PNG: the baseline is pre- and post-processing alone, whose share the ratios are.

    The file is written to memory; nothing is read.

    Args:
        sessions: by name.
        frame: (H, W, 3) uint8.
        rounds: how often each is timed.
    """
    some = next(iter(sessions.values()))
    replay = Replay(some.infer(some.to_input(frame)), size=some.backend.size)
    every = {"pre- and post-processing": PortraitSession(replay, reference=frame), **sessions}
    alternatives = {name: partial(_mask, session, frame) for name, session in every.items()}
    return compare(alternatives, rounds=rounds, table="end to end", measure="share")


def compare_batch(name: str, session: PortraitSession, frame: UInt8Array, *, batch: int, rounds: int) -> Comparison:
    """The network alone on so many prepared frames: one by one, which is the baseline, and at once.

    Args:
        name: of the session, for people.
        session: one of any backend.
        frame: (H, W, 3) uint8.
        batch: how many frames.
        rounds: how often each is timed.
    """
    image = session.to_input(frame)
    images = torch.cat([image] * batch)
    alternatives: dict[str, Callable[[], object]] = {
        f"{name}, one by one": lambda: [session.infer(image) for _ in range(batch)],
        f"{name}, at once": lambda: session.infer(images),
    }
    return compare(alternatives, rounds=rounds, table=f"{batch} frames")


def _mask(session: PortraitSession, frame: UInt8Array) -> object:
    file = io.BytesIO()
    write_png(composite.mask(frame, session.step(frame)), file)
    return file


def largest_differences(sessions: Mapping[str, PortraitSession], frame: UInt8Array) -> dict[str, float]:
    """How far each network's probabilities are from those of the first, at most."""
    found = {name: session.infer(session.to_input(frame)).probability for name, session in sessions.items()}
    expected = next(iter(found.values()))
    return {name: float((probability - expected).abs().max()) for name, probability in found.items()}


def some_frame() -> UInt8Array:
    """A frame of noise, (480, 854, 3) uint8, the same each time."""
    return np.random.default_rng(0).integers(0, 256, size=(*FRAME, 3), dtype=np.uint8)
