"""A plain MLflow server on SQLite that may go away and come back."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pdnet.tracking.store import open_store

#: seconds; it takes five on an idle machine
START_UP = 120


class Server:
    """An MLflow server on a free port of this machine.

    Args:
        folder: for its database, its files and what it says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, closed_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._database = f"sqlite:///{folder / 'mlflow.db'}"
        self._process: subprocess.Popen[bytes] | None = None
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", self._database)
            with open_store():  # makes the tables, faster than the server does
                pass

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--workers", "1", "--backend-store-uri", self._database),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        quick = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | quick, cwd=self.folder, start_new_session=True
            )
        started = time.monotonic()
        while not self._answers():
            given_up = self._process.poll() is not None or time.monotonic() - started > START_UP
            assert not given_up, (self.folder / "server.log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """Kill it with all its workers; nothing happens where it does not run."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _answers(self) -> bool:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with contextlib.suppress(OSError), direct.open(f"{self.uri}/health", timeout=1) as response:
            return bool(response.status == 200)
        return False


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
