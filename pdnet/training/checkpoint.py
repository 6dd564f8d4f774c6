"""Checkpoints: all that a training has come to, so that a run that was killed goes on as if it had not been.

    <folder>/step-00000120/
        state.safetensors   weights, state of the optimisers, state of the random generators
        log.parquet         the log: a row an iteration; their number is the place in the schedule and the streams
        checkpoint.json     what run it belongs to, and the digests of the two files; which training it is of

Each is written whole, and the last two are kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pdnet.errors import CheckpointError, DataError, TrainingError
from pdnet.files import atomic_folder, file_digest, read_object, write_json
from pdnet.training import distributed

logger = logging.getLogger("pdnet.training")

#: How many checkpoints are kept: should the newest be damaged, there is the one before.
KEPT = 2
#: Keys of the configuration that change how fast a training runs, not what it learns.
WITHOUT_EFFECT = {"workers", "cache_mb", "checkpoint_seconds"}


@dataclass
class State:
    """All that the next iteration depends on.

    Attributes:
        task: network and losses.
        optimisers: by the name of their parameter group.
        rows: the log, a row an iteration.
    """

    task: nn.Module
    optimisers: Mapping[str, torch.optim.Optimizer]
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The next iteration."""
        return len(self.rows)

    @property
    def seconds(self) -> float:
        """The time that the iterations so far took."""
        return float(self.rows[-1]["seconds"]) if self.rows else 0.0

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the log, by name, on the CPU."""
        tensors = {f"task.{name}": value for name, value in self.task.state_dict().items()}
        for group, optimiser in self.optimisers.items():
            for index, entry in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{group}.{index}.{key}": x for key, x in entry.items() if x is not None}
        tensors["random.cpu"] = torch.get_rng_state()
        if (device := self._device).type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(device)
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Become what `tensors()` was taken of."""
        self.task.load_state_dict(
            {name.removeprefix("task."): value for name, value in tensors.items() if name.startswith("task.")}
        )
        for group, optimiser in self.optimisers.items():
            parameters = optimiser.param_groups[0]["params"]
            state: dict[int, dict[str, Tensor]] = {}
            for name in tensors:
                if name.startswith(f"optimiser.{group}."):
                    index, key = name.split(".")[-2:]
                    state.setdefault(int(index), {})[key] = _laid_out_like(parameters[int(index)], tensors[name])
            optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        torch.set_rng_state(tensors["random.cpu"])
        if (device := self._device).type == "cuda" and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], device)

    @property
    def _device(self) -> torch.device:
        return next(self.task.parameters()).device


class StoppedError(TrainingError):
    """The process was told to stop; the training can go on."""


class Checkpoints:
    """The checkpoints of one run in a folder that all its processes see.

    Args:
        folder: where they lie, and nothing else.
        run: what determines the weights, by name; anything JSON holds, or a dataclass of it. The weights that a
            training starts from are added. A checkpoint of another run is not continued, but replaced.
        seconds: time from one to the next; 0 writes one after every iteration.

    Attributes:
        training: identifies the training: another one each time that it starts anew, the same when it goes on.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        self.run = {name: _digest(value) for name, value in run.items()}
        self.training = uuid.uuid4().hex
        self.whole: list[Path] = []
        self.saved = time.monotonic()

    def resume(self, state: State) -> None:
        """Bring the initial `state` to where the newest checkpoint of this run was, if there is one.

        Raises:
            CheckpointError: a process does not see the checkpoint that the first one found.
        """
        self.run["initial weights"] = _digest_of_weights(state.task)
        newest = self._newest() if distributed.is_main() else None
        step = distributed.from_main(_step_of(newest) if newest else 0)
        if step == 0:
            return
        newest = self.folder / f"step-{step:08d}"
        try:
            state.restore(load_file(newest / "state.safetensors"))
            state.rows[:] = pd.read_parquet(newest / "log.parquet").to_dict("records")  # type: ignore[assignment]
            self.training = read_object(newest / "checkpoint.json").get("training", self.training)
        except (OSError, SafetensorError, DataError) as error:
            raise CheckpointError(
                f"{newest}: cannot be read ({error}); expected in the sight of every process"
            ) from None
        self.whole = [newest]
        logger.info("%s: goes on after %d iterations", newest, step)

    @property
    def due(self) -> bool:
        """Whether it is time for the next."""
        return time.monotonic() - self.saved >= self.seconds

    def save(self, state: State) -> None:
        """Write a checkpoint and remove those before the last two; in the main process alone.

        Raises:
            CheckpointError: it cannot be written.
        """
        if not distributed.is_main():
            return
        target = self.folder / f"step-{state.step:08d}"
        try:
            with atomic_folder(target) as fresh:
                save_file(state.tensors(), fresh / "state.safetensors")
                pd.DataFrame(state.rows).to_parquet(fresh / "log.parquet", index=False)
                digests = {name: file_digest(fresh / name) for name in ("state.safetensors", "log.parquet")}
                manifest = {"run": self.run, "sha256": digests, "training": self.training}
                write_json(fresh / "checkpoint.json", manifest)
        except (OSError, SafetensorError) as error:
            last = f"the last whole one is {self.whole[-1]}" if self.whole else "there is none before it"
            raise CheckpointError(f"{target}: cannot be written ({error}); {last}") from None
        self.whole = [*self.whole, target][-KEPT:]
        self._remove_all_but(self.whole)
        self.saved = time.monotonic()

    def remove(self) -> None:
        """Remove them all, and the folder where it holds nothing else: the run's result is written."""
        if distributed.is_main() and self.folder.is_dir():
            self._remove_all_but([])
            if not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _newest(self) -> Path | None:
        """The newest that is whole and of this run; a line for what is not."""
        foreign: list[str] = []
        for folder in sorted(_checkpoints_in(self.folder), reverse=True):
            try:
                run = _read_run(folder)
            except (DataError, CheckpointError) as error:
                logger.warning("%s; the checkpoint is left out", error)
                continue
            if run == self.run:
                return folder
            foreign += [f"{folder}: a checkpoint of another run ({_differences(run, self.run)}); starts anew"]
        if foreign:
            logger.warning(foreign[0])
        return None

    def _remove_all_but(self, kept: list[Path]) -> None:
        for folder in _checkpoints_in(self.folder):
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for unfinished in self.folder.glob(".step-*"):  # what a process that was killed had begun to write
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def resumable(state: State, checkpoints: Checkpoints | None) -> Iterator[Callable[[], None]]:
    """Go on from the newest checkpoint, and write more of them.

    SIGTERM, with which Kubernetes announces the end of a pod, lets the iteration finish, writes a checkpoint and ends
    the training with an error, so that the task counts as failed and is tried again.

    Args:
        state: of a training that begins; brought to where the newest checkpoint was.
        checkpoints: where they are; None does nothing.

    Yields:
        A function to call after each iteration.

    Raises:
        CheckpointError: a checkpoint cannot be written.
        TrainingError: the process was told to stop.
    """
    if checkpoints is None:
        yield lambda: None
        return
    checkpoints.resume(state)
    with _sigterm_noted() as told:

        def keep() -> None:
            stop = distributed.any_process(told.is_set())
            if stop or checkpoints.due:
                checkpoints.save(state)
            if stop:
                distributed.any_process(True)  # nobody leaves before it is written
                raise StoppedError(
                    f"stopped by SIGTERM after {state.step} iterations; "
                    f"a checkpoint is in {checkpoints.folder}, run again to go on"
                )

        yield keep


@contextmanager
def _sigterm_noted() -> Iterator[threading.Event]:
    """Note SIGTERM while the block runs; outside the main thread, where Python takes no signals, nothing happens."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


def _checkpoints_in(folder: Path) -> list[Path]:
    """What pdnet wrote there, whole or damaged."""
    found = folder.glob("step-*")
    return [path for path in found if re.fullmatch(r"step-\d{8}", path.name) and (path / ".pdnet").is_file()]


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _read_run(folder: Path) -> dict[str, str]:
    """What run a checkpoint belongs to, after its files were seen to be whole."""
    manifest = read_object(folder / "checkpoint.json", ("run", "sha256"))
    for name, digest in manifest["sha256"].items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise CheckpointError(f"{folder / name}: damaged")
    run: dict[str, str] = manifest["run"]
    return run


def _differences(found: dict[str, str], wanted: dict[str, str]) -> str:
    names = [name for name in wanted | found if found.get(name) != wanted.get(name)]
    return f"{' and '.join(names)} {'differs' if len(names) == 1 else 'differ'}"


def _laid_out_like(parameter: Tensor, x: Tensor) -> Tensor:
    """`x` with the strides of the parameter that it belongs to, as the optimiser made it; a step count as it is."""
    return torch.empty_like(parameter).copy_(x) if x.shape == parameter.shape else x


def _digest(value: Any) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {key: x for key, x in dataclasses.asdict(value).items() if key not in WITHOUT_EFFECT}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _digest_of_weights(module: nn.Module) -> str:
    """Of every parameter and buffer, those of frozen networks too, which no state dict holds."""
    digest = hashlib.sha256()
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(name.encode())
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
