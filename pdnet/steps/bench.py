"""How fast a network runs here: every backend that this machine has, in turn."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from pdnet.config import load_config
from pdnet.data.transforms import normalise, resize_image
from pdnet.devices import pick_device
from pdnet.errors import CheckpointError, ConfigError, DataError
from pdnet.export.config import ExportConfig
from pdnet.export.onnx import Form, export_streaming
from pdnet.files import require_writable, write_json
from pdnet.inference.bench import format_record
from pdnet.inference.onnx_backend import StreamingBackend
from pdnet.inference.ways import (
    ENGINES,
    FORMS,
    GRAPHS,
    PAIR_GRAPH,
    WEIGHTS,
    Subject,
    Variant,
    measure,
    some_frame,
    ways_of,
)
from pdnet.model import ModelConfig, PDNet
from pdnet.progress import track
from pdnet.weights import load_model, model_facts, save_model

#: What variants have more of: reference frames (table 5, row 2), and parts.
REFERENCES, PARTS = 2, 16


def bench(
    *,
    model: Path | None = None,
    random: Path | None = None,
    size: int | None = None,
    device: str = "auto",
    rounds: int = 15,
    compile: bool = False,
    memory: bool = False,
    batch: int | None = None,
    out: Path | None = None,
) -> str:
    """Time a network by every backend that this machine has, in turn.

    The network alone on one frame, beside the pair formulation, which encodes both frames; from frame to mask, with
    the share of pre- and post-processing; what a second reference frame costs; of random networks, what 16 parts
    cost. Ratios are of times of the same round. OMP_NUM_THREADS says how many threads.

    Args:
        model: model file of `pdnet train`, or a folder of `pdnet export onnx`, whose graphs are run as they are.
        random: params file, instead of a model: a network of its architecture with random weights.
        size: side of the network's input; without it the model's own.
        device: auto, cpu, cuda or cuda:INDEX.
        rounds: how often each is timed.
        compile: time torch.compile as well, which takes a minute for each network.
        memory: measure peak memory as well, each backend in a process of its own.
        batch: time so many frames at once as well, beside the same frames one by one.
        out: JSON file for the result.

    Returns:
        The tables.

    Raises:
        ConfigError: not exactly one of `model` and `random`, no rounds, or a size that the graphs do not have.
        CheckpointError: the model file is missing or damaged, or does not say its size.
        DataError: the model folder holds nothing to run, or `out` cannot be written.
    """
    if (model is None) == (random is None):
        raise ConfigError("expected either --model, a trained network, or --random, a params file")
    for name, value in (("rounds", rounds), ("size", size), ("batch", batch)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name}: {value}, expected at least 1")
    if out is not None:
        require_writable(out)
    given = {"model": model, "random": random, "size": size, "rounds": rounds, "device": device, "batch": batch}
    flags = {"compile": compile, "memory": memory}
    command = ["pdnet", "bench"]
    command += [word for key, value in given.items() if value is not None for word in (f"--{key}", str(value))]
    command += [f"--{key}" for key, value in flags.items() if value]
    place = pick_device(device)
    with tempfile.TemporaryDirectory() as scratch:
        subject = lay_out(Path(scratch), model=model, random=random, size=size, graphs=place.type == "cpu")
        ways = ways_of(subject, place, compiled=compile)
        record = measure(
            subject, ways, device=place, rounds=rounds, memory=memory, batch=batch, command=shlex.join(command)
        )
    if out is not None:
        write_json(out, record)
    return format_record(record)


def lay_out(
    scratch: Path,
    *,
    model: Path | None = None,
    random: Path | None = None,
    size: int | None = None,
    graphs: bool = True,
) -> Subject:
    """Write a network and its variants into `scratch`.

    Args:
        scratch: an empty folder.
        model: as for `bench`.
        random: as for `bench`.
        size: as for `bench`.
        graphs: with the graphs that ONNX Runtime and OpenVINO run.
    """
    if random is not None:
        config = load_config(random)
        side = size or config.data.size
        network, source, ready = random_network(config.model, side), f"random weights, {random}", None
    else:
        assert model is not None
        ready = model if model.is_dir() and all((model / name).is_file() for name in GRAPHS) else None
        weights = model / WEIGHTS if model.is_dir() else model
        if model.is_dir() and not weights.is_file():
            return _graphs_alone(model, ready, size)
        network, source = load_model(weights), str(model)
        side = size or _own_size(weights)
    if ready is not None and StreamingBackend(ready).size != side:
        ready = None
    folder = scratch / "network"
    variants = [
        (Variant(table, names, scratch / table), other)
        for table, names, other in _variants(network, side, random=random is not None)
    ]
    for place, one in track([(folder, network), *((variant.folder, other) for variant, other in variants)], "export"):
        save_model(place / WEIGHTS, one, {"size": side})
        if not graphs or not one.config.ipda:
            continue
        if place == folder and ready is not None:  # what was exported is what is measured
            for name in GRAPHS:
                shutil.copy2(ready / name, place / name)
            for name in (*FORMS, ENGINES):
                if (ready / name).is_dir():
                    shutil.copytree(ready / name, place / name)
        else:
            export_streaming(one, place, Form(side, ExportConfig().opset))
    return Subject(folder, side, source, network.config, tuple(variant for variant, _ in variants))


def _graphs_alone(model: Path, ready: Path | None, size: int | None) -> Subject:
    if ready is None or not (model / PAIR_GRAPH).is_file():
        raise DataError(f"{model}: expected {WEIGHTS}, or {PAIR_GRAPH}, {' and '.join(GRAPHS)}")
    own = StreamingBackend(model).size
    if size not in (None, own):
        raise ConfigError(
            f"--size: {size}, but the graphs in {model} take {own}; without {WEIGHTS} they are all it has"
        )
    return Subject(model, own, str(model))


def _own_size(weights: Path) -> int:
    size = model_facts(weights).get("size")
    if not isinstance(size, int):
        raise CheckpointError(f"{weights}: does not say the size of the network's input; expected --size")
    return size


def _variants(network: PDNet, size: int, *, random: bool) -> Iterator[tuple[str, tuple[str, str], PDNet]]:
    """Networks that have more of something: title, names, network."""
    config = network.config
    if config.ipda and config.references < REFERENCES:
        other = PDNet(dataclasses.replace(config, references=REFERENCES)).eval()
        other.load_state_dict(network.state_dict())
        yield "second reference", (f"N = {config.references}", f"N = {REFERENCES}"), other
    if config.ipda and random and config.parts < PARTS:
        other = random_network(dataclasses.replace(config, parts=PARTS), size)
        yield "parts", (f"p = {config.parts}", f"p = {PARTS}"), other


def random_network(architecture: ModelConfig, size: int) -> PDNet:
    """A network with random weights, the same each time, whose activations stay in a trained network's range.

    Batch normalisation takes its statistics from the frame that is timed. Without them activations grow from block to
    block until they are no numbers any more.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = PDNet(architecture).train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean of what was seen
        image = normalise(resize_image(some_frame(), size))
        frames = torch.stack([image, image.flip(-1)])
        network(frames, torch.stack([frames] * architecture.references, dim=1))
        return network.eval()
