"""A training on record while it runs, and never stopped by that; it waits for the store at its end alone, and not long.

Losses, rates and the machine's load go to MLflow in a run of the step. Three programs share a journal (journal.py):

    the training        appends a line an iteration: some microseconds, no network
    the recorder        a process beside it: sends what the journal holds, and samples the machine (recorder.py)
    `pdnet track sync`  sends later what a recorder could not (delivery.py)

The recorder is a process and not a thread because loader processes are forked from the training: one that is forked
while a thread imports MLflow waits for ever for a lock that nobody holds. Nor do MLflow's memory, its changes of the
environment and its crashes reach the training.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pdnet.errors import TrackingError
from pdnet.tracking.config import TrackingConfig
from pdnet.tracking.curves import curve_points
from pdnet.tracking.delivery import DRAIN_SECONDS, LATER, TRAINING_TAG
from pdnet.tracking.journal import Header, JournalWriter, buffer_folder
from pdnet.tracking.store import origin_tags, store_identity

logger = logging.getLogger("pdnet.tracking")


@contextlib.contextmanager
def live_run(
    step: str,
    tags: Mapping[str, str | None],
    tracking: TrackingConfig,
    *,
    training: Callable[[], str],
    stops: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
) -> Iterator[LiveRun]:
    """Record the block: FINISHED, FAILED where it raises, KILLED where it is stopped.

    Nothing that goes wrong here reaches the block. Nothing is recorded where the configuration says so, nor where
    MLflow is missing and no store is named.

    Args:
        step: name of the step, and of the run.
        tags: of the run; None is left out.
        tracking: name of the experiment, and whether to record.
        training: identifies the training over the processes that go on with it; asked at the first iteration.
        stops: errors that mean that somebody has stopped the block.
    """
    run = LiveRun(step, tags, tracking, training)
    try:
        yield run
    except BaseException as error:
        run.finish("KILLED" if isinstance(error, stops) else "FAILED")
        raise
    run.finish("FINISHED")


class LiveRun:
    """The record of the training in this process: see `live_run`.

    Attributes:
        run_id: of the MLflow run, as soon as it is known.
        training: identifies the training, as the run's tag `pdnet.training`; None before the first iteration.
    """

    def __init__(
        self, step: str, tags: Mapping[str, str | None], tracking: TrackingConfig, training: Callable[[], str]
    ) -> None:
        self.run_id = os.environ.get("MLFLOW_RUN_ID") or None
        self.training: str | None = None
        self._about = (step, tags, tracking.experiment, training)
        self._journal: JournalWriter | None = None
        self._recorder: subprocess.Popen[bytes] | None = None
        self._partial_line = b""  # a line that the recorder has not finished
        self._step = 0
        self._warned = False
        wanted = bool(os.environ.get("MLFLOW_TRACKING_URI")) or _has_mlflow()
        self._over = not (tracking.live and wanted)

    def append(self, row: Mapping[str, Any]) -> None:
        """Record an iteration, given its row of the log."""
        if self._over:
            return
        with self._harmless():
            journal = self._opened()
            self._step = int(row["step"])
            journal.write({"time": _now(), "step": self._step, "metrics": dict(curve_points(row))})
            self._listen()

    def wait_for_run(self) -> str | None:
        """The id of the run, which a training of seconds may have to wait for.

        Returns:
            The id; None where MLflow does not answer within `DRAIN_SECONDS`, or nothing is recorded.
        """
        if not self._over:
            with self._harmless():
                self._opened()
                deadline = time.monotonic() + DRAIN_SECONDS
                while not (self.run_id or self._warned or self._recorder is None) and time.monotonic() < deadline:
                    time.sleep(0.02)
                    self._listen()
        return self.run_id

    def finish(self, status: str) -> str | None:
        """End the run, and wait until all is sent, at most `DRAIN_SECONDS`; a second call does nothing.

        Args:
            status: FINISHED, FAILED or KILLED.

        Returns:
            The id of the run; None where it could not be made yet.
        """
        if not self._over:
            with self._harmless():
                self._end(self._opened(), status)
            self._over = True
        return self.run_id

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Let no error through; the first is told."""
        try:
            yield
        except Exception as error:
            if self._journal is None:
                self._over = True
            self._warn(f"training goes on, but is not recorded: {error}")

    def _opened(self) -> JournalWriter:
        """The journal, made at the first call, with a recorder to send it."""
        if self._journal is not None:
            return self._journal
        step, tags, experiment, training = self._about
        if not _has_mlflow():
            raise TrackingError("MLFLOW_TRACKING_URI is set, but mlflow is not installed")
        self.training = training()
        own = origin_tags() | {"mlflow.source.name": f"pdnet {step}", TRAINING_TAG: self.training}
        own |= {"step": step, "host": platform.node()}
        given = {name: value for name, value in tags.items() if value is not None}
        header = Header(self.training, step, experiment, self.run_id, own | given, _now(), store_identity())
        self._journal = JournalWriter(buffer_folder(), header)
        command = [sys.executable, "-m", "pdnet.tracking.recorder", str(self._journal.path), str(os.getpid())]
        pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
        try:  # in a session of its own: Ctrl-C is for the training, which tells the recorder what to make of it
            self._recorder = subprocess.Popen(  # noqa: S603
                command, bufsize=0, stdin=pipe, stdout=pipe, stderr=quiet, start_new_session=True
            )
        except OSError as error:
            self._warn(f"{self._journal.path}: recording goes on there alone, {LATER}: {error}")
            return self._journal
        assert self._recorder.stdout is not None
        os.set_blocking(self._recorder.stdout.fileno(), False)
        return self._journal

    def _end(self, journal: JournalWriter, status: str) -> None:
        try:
            journal.write({"time": _now(), "end": status})
        finally:
            if self._recorder is not None:
                self._drain(self._recorder, status)
            journal.close()
        if journal.path.exists() and not self._warned:
            self._warn(f"{journal.path}: holds what MLflow did not get in {DRAIN_SECONDS} s; {LATER}")

    def _drain(self, recorder: subprocess.Popen[bytes], status: str) -> None:
        """Let the recorder come to its end."""
        assert recorder.stdin is not None
        with contextlib.suppress(OSError):  # it may have ended already
            recorder.stdin.write(f"{status}\n".encode())
            recorder.stdin.close()
        deadline = time.monotonic() + DRAIN_SECONDS
        while self._recorder is not None and time.monotonic() < deadline:
            time.sleep(0.02)
            self._listen()
        recorder.kill()
        recorder.wait()
        if recorder.stdout is not None:
            recorder.stdout.close()

    def _listen(self) -> None:
        """Handle what the recorder has said by now; never waits."""
        if self._recorder is None:
            return
        assert self._recorder.stdout is not None
        said = self._recorder.stdout.read()
        if said == b"":  # it has ended; should all be sent, there is no journal any more
            self._recorder.wait()
            self._recorder = None
            if self._journal is not None and self._journal.path.exists():
                self._warn(f"{self._journal.path}: recording goes on there alone; {LATER}")
            return
        *lines, self._partial_line = (self._partial_line + (said or b"")).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):  # what a library printed before the recorder silenced them
                event = json.loads(line)
                if isinstance(event, dict):
                    self._handle(event)

    def _handle(self, event: Mapping[str, Any]) -> None:
        if "run_id" in event:
            self.run_id = event["run_id"]
        elif "metrics" in event:
            assert self._journal is not None
            with self._harmless():
                self._journal.write({"step": self._step, **event})
        elif "trouble" in event:
            self._warn(event["trouble"])
        elif "well" in event and self._warned:
            self._warned = False
            logger.info("%s", event["well"])

    def _warn(self, line: str) -> None:
        """Once until all is well again."""
        if not self._warned:
            logger.warning("%s", line)
        self._warned = True


def _has_mlflow() -> bool:
    return importlib.util.find_spec("mlflow") is not None


def _now() -> int:
    return int(time.time() * 1000)
