"""MLflow on PostgreSQL with its artifacts in S3, on this machine: `stack.py up | down | status`; see README.md.

By native.py, or by compose.yaml where Docker with its compose plugin answers and there are no native data.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from native import SERVICES, Stack, check_libraries
from settings import ENDPOINT, IMAGE, PASSWORDS, PORT, StackError, forget_other_servers, kept_secrets, read_settings
from users import ask, make_user

HERE = Path(__file__).resolve().parent


def has_compose() -> bool:
    """Whether Docker answers and has its compose plugin."""
    calls = (["docker", "compose", "version"], ["docker", "info"])
    return bool(shutil.which("docker")) and not any(
        subprocess.run(call, check=False, capture_output=True).returncode  # noqa: S603
        for call in calls
    )


def compose(settings: Mapping[str, str], *arguments: str) -> None:
    """Run docker compose on compose.yaml, which takes the settings from the environment.

    Raises:
        StackError: it has failed, and said why.
    """
    profile = () if settings[ENDPOINT] and arguments[0] == "up" else ("--profile", "s3")
    command = ["docker", "compose", "--file", str(HERE / "compose.yaml"), *profile, *arguments]
    if subprocess.run(command, check=False, env={**os.environ, **settings}).returncode:  # noqa: S603
        hint = f"{settings[IMAGE]} is made by make images STAGES=cpu"
        raise StackError(f"docker compose {arguments[0]} has failed, as it says above ({hint}; --native does without)")


def how_to_use(file: Path, settings: Mapping[str, str]) -> str:
    """Three lines: where it is, how to sign in, how to point pdnet at it. No password is in them."""
    shown = os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)
    in_file = {name for name, value in kept_secrets(file).items() if settings.get(name) == value}
    places = {name: shown if name in in_file else "the environment" for name in PASSWORDS.values()}
    signs = [f"{user} ({name} in {places[name]})" for user, name in PASSWORDS.items()]
    name = PASSWORDS["pdnet"]
    password = f"$(sed -n s/^{name}=//p {shlex.quote(shown)})" if name in in_file else f"${name}"
    uri = f"http://127.0.0.1:{settings[PORT]}"
    user = f'MLFLOW_TRACKING_USERNAME=pdnet MLFLOW_TRACKING_PASSWORD="{password}"'
    return f"MLflow: {uri}\nsign in as {' or '.join(signs)}\nexport MLFLOW_TRACKING_URI={uri} {user}"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait for other calls on this folder, which is made where it is new."""
    if not folder.exists():
        folder.mkdir(parents=True)
        folder.chmod(0o711)  # PostgreSQL's user has to get through
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(command: str, folder: Path, *, native: bool) -> int:
    """Do what the command line says.

    Returns:
        The exit code: 1 where not all services run, after `status`.
    """
    if native:
        check_libraries()
    settings = {} if native and command != "up" else read_settings(folder)
    forget_other_servers()
    stack = Stack(folder, settings)
    if command == "up":
        if native:
            stack.up()
        else:
            compose(settings, "up", "--detach")
            logs = "docker logs pdnet-stack-mlflow-1"
            stack.wait("mlflow", lambda: ask(settings[PORT], "/health") == 200, logs)
            make_user(settings)
        print(how_to_use(folder / "secrets.env", settings))
    elif not native:
        compose(settings, "down" if command == "down" else "ps")
    elif command == "down":
        print(f"stopped: {', '.join(stack.stop()) or 'nothing, none was running'}; the data stay in {folder}")
    else:
        found = stack.running()
        for name in SERVICES:
            print(f"{name:9}", f"127.0.0.1:{found[name].port}" if name in found else "does not run")
        return int("mlflow" not in found)
    return 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="MLflow on PostgreSQL with its artifacts in S3, on this machine.")
    parser.add_argument("command", choices=("up", "down", "status"))
    parser.add_argument("--folder", type=Path, default=HERE.parents[1] / ".stack", help="for data, secrets and logs")
    parser.add_argument("--native", action="store_true", help="no containers, whatever this machine has")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    if arguments.command != "up" and not folder.exists():
        print(f"there is no {folder}: nothing has been started")
        return int(arguments.command == "status")
    try:
        with alone(folder):
            native = arguments.native or (folder / "postgres").exists() or not has_compose()
            return run(arguments.command, folder, native=native)
    except StackError as error:
        print(f"stack: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
