"""One frame of a clip by every backend of this machine, beside the released network's way of computing it.

The released formulation encodes target and reference for every frame, decouples part after part in a Python loop, and
writes its attention out; it is the slow reference of the tests (tests/model/loop_reference.py), here with torch's own
batch normalisation, as the released code has it. Before anything is timed it has to give the same answer.

    python benchmarks/inference.py                     # configs/paper.yaml, random weights, 480x480
    python benchmarks/inference.py --compile --memory  # with torch.compile, and peak memory
    python benchmarks/inference.py --device cuda --compile --memory --batch 8

Writes benchmarks/results/inference-cpu.json (inference-cuda.json), in the form that `pdnet bench` writes
(pdnet/inference/bench.py).
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from pdnet.inference.session import Backend, Features, Output, PortraitSession
from pdnet.weights import load_model, model_facts

REFERENCE = Path(__file__).resolve().parents[1] / "tests" / "model" / "loop_reference.py"
RESULTS = Path("benchmarks/results")
#: Largest difference of a probability between two ways of computing the same, in float32.
SAME = 1e-2


class ReleasedFormulation:
    """The network as the authors released it: nothing cached, parts one by one, float32, eager."""

    raw = False
    name = "released formulation"

    def __init__(self, folder: Path, device: torch.device) -> None:
        loop_reference = _reference()
        network = load_model(folder / "model.safetensors")
        self.size, self.references = model_facts(folder / "model.safetensors")["size"], network.config.references
        self._assembly = network.config.assembly
        self._scaled = network.config.attention_scale == "sqrt_dim"
        self._weights = loop_reference.released_names(network.to(device).state_dict(), network.config.parts)
        self._device = device
        self._segment = loop_reference.segment

    def encode(self, image: Tensor) -> Features:
        """The frame itself."""
        return (image,)

    def segment(self, image: Tensor, references: Sequence[Features]) -> Output:
        """Encode all frames, then segment."""
        frames = [frame.to(self._device) for (frame,) in references]
        with torch.inference_mode():
            target = image.to(self._device)
            found = self._segment(self._weights, target, frames, assembly=self._assembly, scaled=self._scaled)
            return Output(torch.sigmoid(found.logits).cpu(), own=(image,) if self.references > 1 else None)


def _reference() -> ModuleType:
    """The tests' reference; a copy of its own, for the sake of tests in the same process."""
    spec = importlib.util.spec_from_file_location("released_formulation", REFERENCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module)["norm"] = batch_norm
    return module


def batch_norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """What the reference writes out as arithmetic, in one operation."""
    mean, variance, scale, shift = (
        weights[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return torch.nn.functional.batch_norm(x, mean, variance, scale, shift)


def open_released(folder: Path, *, device: torch.device) -> Backend:
    """The released formulation of the weights in a folder."""
    return ReleasedFormulation(folder, device)


def main() -> None:
    # Child processes import this module: what only this one needs stays out of their memory.
    from pdnet.cli import show_progress
    from pdnet.devices import pick_device
    from pdnet.files import write_json
    from pdnet.inference.bench import format_record
    from pdnet.inference.ways import largest_differences, measure, some_frame, ways_of
    from pdnet.steps.bench import lay_out

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="trained model instead of random weights")
    parser.add_argument("--params", type=Path, default=Path("configs/paper.yaml"))
    parser.add_argument("--size", type=int)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--batch", type=int, help="time so many frames at once as well")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    random = None if arguments.model else arguments.params
    device, frame = pick_device(arguments.device), some_frame()
    out = arguments.out or RESULTS / f"inference-{device.type}.json"
    with tempfile.TemporaryDirectory() as scratch, show_progress():
        graphs = device.type == "cpu"
        subject = lay_out(Path(scratch), model=arguments.model, random=random, size=arguments.size, graphs=graphs)
        ways = ways_of(subject, device, compiled=arguments.compile)
        pairs = {"released formulation": partial(open_released, device=device), **ways.pairs}
        apart = largest_differences(
            {name: PortraitSession(way(subject.folder), reference=frame) for name, way in pairs.items()}, frame
        )
        if not all(value <= SAME for value in apart.values()):  # nor NaN
            sys.exit(f"not the same network: probabilities differ by {apart}")
        record = measure(
            subject,
            ways._replace(pairs=pairs),
            device=device,
            rounds=arguments.rounds,
            memory=arguments.memory,
            batch=arguments.batch,
            command=shlex.join(["python", *sys.argv]),
        )
    write_json(out, record)
    print(format_record(record))
    print(f"\n{out}")


if __name__ == "__main__":
    main()
