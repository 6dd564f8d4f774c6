"""Commands in processes of their own: several at once, or killed before a call that would change the store."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlflow

from pdnet.cli import main
from pdnet.tracking import promotion_lock

#: Every call with which MLflow's client changes a store begins with one of these.
CHANGES = ("create_", "set_", "delete_", "log_", "update_", "rename_")
#: A process that imports the libraries once; each test process is forked from it in no time, and really killed.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["mlflow", "pdnet.steps", "registered_models"])


def new_process(target: Callable[..., None], *args: Any) -> Any:
    """A process, not started yet, in the environment of now: that of the one it is forked from is older."""
    return PROCESSES.Process(target=_run, args=(dict(os.environ), target, *args))


def killed(argv: Sequence[str], nth: int, folder: Path) -> bool:
    """Run a command that is killed before the n-th call that would change the store.

    Returns:
        Whether it was killed before it ended by itself, which it must do well.
    """
    process = new_process(_run_killed, argv, nth, folder / "output")
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), (folder / "output").read_text()
    return bool(process.exitcode == -signal.SIGKILL)


def _run(environment: dict[str, str], target: Callable[..., None], *args: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(*args)


def _run_killed(argv: Sequence[str], nth: int, output: Path) -> None:
    sys.stdout = sys.stderr = output.open("w")
    promotion_lock.SETTLE = 0.1
    calls = 0

    def counted(call: Any) -> Any:
        def counting(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counting

    for name in dir(mlflow.MlflowClient):
        if name.startswith(CHANGES):
            setattr(mlflow.MlflowClient, name, counted(getattr(mlflow.MlflowClient, name)))
    sys.exit(main(list(argv)))
