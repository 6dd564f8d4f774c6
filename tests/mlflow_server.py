"""The MLflow server of infra/stack, for tests: PostgreSQL, S3 and MLflow as real processes in a folder of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

STACK = Path(__file__).parents[1] / "infra" / "stack" / "stack.py"
#: The exit code of the stack where this machine lacks something.
LACKING = 4


class Server(NamedTuple):
    """Where the server is, a user who may make experiments and models, and the password of `admin`."""

    uri: str
    username: str
    password: str
    admin_password: str


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A server that is there until the block ends. Skips the test where there is no PostgreSQL.

    It takes 10 s on an idle machine: one for a whole module or session is enough.
    """
    with stack_folder() as folder:
        port = free_port()
        skip_without_postgres(stack("up", folder, port=port))
        admin, pdnet = (kept_secrets(folder)[f"PDNET_STACK_{who}_PASSWORD"] for who in ("ADMIN", "USER"))
        yield Server(f"http://127.0.0.1:{port}", "pdnet", pdnet, admin)


@contextlib.contextmanager
def stack_folder() -> Iterator[Path]:
    """A folder for a stack, which is stopped and removed when the block ends.

    Not one of pytest's: those are closed to PostgreSQL's user, who is another one where the tests run as root.
    """
    folder = Path(tempfile.mkdtemp(prefix="pdnet-stack-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        stopped = stack("down", folder)
        shutil.rmtree(folder)
        assert stopped.returncode in (0, LACKING), stopped.stderr


def stack(command: str, folder: Path, *, port: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Call the stack's script as `make` does, natively and without the caller's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PDNET_STACK_", "PDNET_S3_"))}
    return subprocess.run(
        [sys.executable, str(STACK), command, "--native", "--folder", str(folder)],
        env=kept | {"PDNET_STACK_PORT": str(port)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def skip_without_postgres(up: subprocess.CompletedProcess[str]) -> None:
    """Skip the test where the machine cannot run the stack; fail it where the stack fails."""
    if up.returncode == LACKING:
        pytest.skip(up.stderr.strip())
    assert up.returncode == 0, up.stderr


def kept_secrets(folder: Path) -> dict[str, str]:
    """The secrets that the stack has drawn."""
    return dict(line.split("=", 1) for line in (folder / "secrets.env").read_text(encoding="utf-8").splitlines())


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
