"""Training as a user starts it: the real commands, in processes that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from tiny_profile import MODEL, write_params

from pdnet.model import ModelConfig, PDNet
from pdnet.weights import save_model

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


class Project:
    """A folder where everything before pretraining, and a network to train, are there.

    Ten iterations of training (image, video, video, image, video, twice), six of pretraining, each with a checkpoint.
    """

    def __init__(
        self, root: Path, portraits: Path, pretrain_lr: float = 2e-3, *, live: bool = False, **train: object
    ) -> None:
        self.root, self.data = root, portraits
        self.checkpoints = root / "checkpoints"
        options = {"epochs": 2, "batch_size": 4, "image_batch_size": 2, "checkpoint_seconds": 0, **train}
        pretrain = {"epochs": 3, "batch_size": 4, "lr": pretrain_lr}
        write_params(root / "params.yaml", train=options, pretrain=pretrain, tracking={"live": live})
        for step in ("validation", "pretrain"):
            (root / step).mkdir()
            (root / step / "run.json").write_text(json.dumps({"step": step, "data": {}, "parents": {}}))
        (root / "validation" / "data.json").write_text(json.dumps({"valid": True}))
        torch.manual_seed(0)
        save_model(root / "pretrain" / "model.safetensors", PDNet(ModelConfig(**MODEL)))

    def command(self, step: str, out: Path, *, processes: int = 1, checkpoints: bool = True) -> list[str]:
        inputs = {
            "train": {"videos": self.data, "init": self.root / "pretrain"},
            "pretrain": {"validation": self.root / "validation"},
        }[step]
        options = {**inputs, "images": self.data / "Stills", "out": out, "params": self.root / "params.yaml"}
        if checkpoints:
            options["checkpoints"] = self.checkpoints
        torchrun = TORCHRUN if processes > 1 else []
        words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
        return [sys.executable, *torchrun, "-m", "pdnet", step, *words]

    def run(self, step: str, out: Path, *, processes: int = 1, checkpoints: bool = True) -> str:
        """To the end; what it says."""
        command = self.command(step, out, processes=processes, checkpoints=checkpoints)
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        return done.stderr

    @contextlib.contextmanager
    def started(self, step: str, out: Path, *, processes: int = 1) -> Iterator[subprocess.Popen[str]]:
        """In a session of its own, of which nothing is left afterwards; what torchrun starts dies with it."""
        command = self.command(step, out, processes=processes)
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def kill(self, step: str, out: Path, *, after: int, processes: int = 1) -> None:
        """Start, and kill it at whatever it does when `after` iterations are in a checkpoint."""
        with self.started(step, out, processes=processes) as process:
            self.wait_for(process, after)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert not out.exists()

    def wait_for(self, process: subprocess.Popen[str], iterations: int) -> None:
        """Until a checkpoint of at least so many iterations is there."""
        while self.saved()[-1:] < [iterations]:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.002)

    def saved(self) -> list[int]:
        """The iterations of the checkpoints."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.checkpoints.glob("step-*"))


def log_of(out: Path) -> pd.DataFrame:
    """The log without what the clock says."""
    log = pd.read_parquet(out / "log.parquet")
    assert log["seconds"].is_monotonic_increasing
    return log.drop(columns=["seconds", "data_seconds"], errors="ignore")


def assert_same_result(out: Path, again: Path) -> None:
    """To the last bit."""
    pd.testing.assert_frame_equal(log_of(out), log_of(again), check_exact=True)
    assert (out / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
