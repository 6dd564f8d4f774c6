"""The process beside a training that brings its journal to MLflow, and samples the machine.

    python -m pdnet.tracking.recorder JOURNAL PROCESS

Started by live.py. It follows the journal until a line on stdin says how the training has ended, or its process is
gone. On what was its stdout it tells the training, a JSON object a line:

    {"run_id": ...}                 the run, each time it is opened
    {"time": ..., "metrics": ...}   a sample, for the journal, which has one writer alone
    {"trouble": ...}, {"well": ...} what a person should know
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pdnet.errors import TrackingError
from pdnet.tracking.delivery import DRAIN_SECONDS, LATER, SYSTEM, deliver, deliver_before
from pdnet.tracking.journal import Journal
from pdnet.tracking.store import open_store

#: From one sending to the next.
_SEND_SECONDS = 2.0
#: From one attempt to reach a store that does not answer to the next; doubled each time.
_RETRY_SECONDS, _LONGEST_RETRY = 2.0, 60.0
#: From one sample of the machine to the next: at first, and after some hours.
_SAMPLE_SECONDS, _LONGEST_SAMPLE = 5.0, 60.0


class Recorder:
    """Sends a journal while it is written.

    Args:
        journal: of the training.
        training: its process.
        tell: tells it.
    """

    def __init__(self, journal: Journal, training: int, tell: Callable[..., None]) -> None:
        self._journal, self._training, self._tell = journal, training, tell
        self._over = False
        self._troubled = False
        self._sendings = 0  # since the run was opened

    def run(self) -> None:
        """Send the journal until the training has ended, whatever the store does meanwhile."""
        pause = _RETRY_SECONDS
        while True:
            try:
                with open_store() as store:
                    deliver_before(store, self._journal)
                    deliver(store, self._journal, waiting=self._more, opened=self._opened)
                    return
            except TrackingError as error:
                if not self._troubled:
                    self._troubled, pause = True, _RETRY_SECONDS
                    self._tell(trouble=f"recording goes on in {self._journal.path}, {LATER}: {error}")
            if self._over:
                return
            self._wait(pause)
            pause = min(2 * pause, _LONGEST_RETRY)

    def _opened(self, run_id: str) -> None:
        self._sendings = 0
        self._tell(run_id=run_id)

    def _more(self) -> bool:
        if self._troubled and self._sendings > 0:  # a store that opens a run may still refuse what is sent
            self._troubled = False
            self._tell(well="MLflow answers again: it has what was recorded meanwhile")
        self._sendings += 1
        self._wait(_SEND_SECONDS)
        return not self._over

    def _wait(self, seconds: float) -> None:
        """Wait, but not beyond the end of the training."""
        if self._over:
            return
        told, _, _ = select.select([sys.stdin], [], [], seconds)
        self._over = bool(told) or os.getppid() != self._training
        if told:
            self._journal.end = sys.stdin.readline().strip() or None  # as it writes, unless the disk is full
        if self._over:
            signal.alarm(DRAIN_SECONDS)  # where the training was killed, nobody else would end this process


def sample_forever(monitors: list[Any], tell: Callable[..., None]) -> None:
    """Tell what the machine is busy with: seconds apart, and less often the longer it takes."""
    started = time.monotonic()
    usual = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or _SAMPLE_SECONDS)
    pause = min(1.0, usual)
    while True:
        time.sleep(pause)
        sample: dict[str, float] = {}
        for monitor in monitors:
            with contextlib.suppress(Exception):  # a device that does not say everything
                monitor.clear_metrics()
                monitor.collect_metrics()
                sample |= {f"{SYSTEM}{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        tell(
            time=int(time.time() * 1000), metrics={key: value for key, value in sample.items() if math.isfinite(value)}
        )
        pause = max(usual, min((time.monotonic() - started) / 400, _LONGEST_SAMPLE))


def system_monitors() -> list[Any]:
    """MLflow's own monitors, of what there is here."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        with contextlib.suppress(Exception):  # no GPU, or no library to ask it
            monitors.append(kind())
    monitors[0].collect_metrics()  # the first share of the CPU is of no time at all
    return monitors


def main(path: str, training: str) -> None:
    """Record a training.

    Args:
        path: its journal.
        training: its process.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the training gets it too, and says what it makes of it
    os.nice(10)
    tell = taken_stdout()
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    try:
        threading.Thread(target=sample_forever, args=(system_monitors(), tell), daemon=True).start()
        Recorder(Journal(Path(path)), int(training), tell).run()
    except Exception as error:
        tell(trouble=f"recording goes on in {path}, {LATER}: {type(error).__name__}: {error}")


def taken_stdout() -> Callable[..., None]:
    """What writes to stdout, an event a line; all else that is printed from now on, by whatever library, is lost."""
    training = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)

    def tell(**event: Any) -> None:
        with contextlib.suppress(OSError):  # the training is gone
            training.write(json.dumps(event) + "\n")
            training.flush()

    return tell


if __name__ == "__main__":
    main(*sys.argv[1:])
