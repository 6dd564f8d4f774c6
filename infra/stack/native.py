"""The three services as processes of this machine: PostgreSQL, rclone as S3 server, MLflow.

Each is started in a session of its own and carries the variable PDNET_STACK with folder, name and port, by which later
calls find it: the process table is the one record of what runs.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from settings import (
    BUCKET,
    DATABASE_PASSWORD,
    ENDPOINT,
    FLASK_KEY,
    PASSWORDS,
    PORT,
    REGION,
    S3_KEY,
    S3_SECRET,
    MissingError,
    StackError,
    write_secret,
)
from users import ask, make_user

HERE = Path(__file__).resolve().parent
SERVICES = ("postgres", "s3", "mlflow")  # each after what it needs
DATABASE = "postgresql+psycopg2:///mlflow"  # the rest is in libpq's variables: no password in a command line
DEBIAN = Path("/usr/lib/postgresql")  # whose packages put no server on the path
#: Seconds. MLflow makes its tables at the first start, PostgreSQL may have to recover from a crash.
LONGEST_START, LONGEST_STOP = 300, 60


class Service(NamedTuple):
    """A service that has processes: its port, the one that was started (None if it is gone), and all of them."""

    port: int
    leader: Any
    processes: list[Any]


class Stack:
    """The services whose data are in one folder, run natively."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.settings = settings
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def up(self) -> None:
        """Start what does not run yet, and wait until all of it answers.

        Raises:
            StackError: something is missing, in use, refused or slow; what this call has started has ended again.
        """
        (self.folder / "logs").mkdir(mode=0o700, exist_ok=True)
        port, endpoint = int(self.settings[PORT]), self.settings[ENDPOINT]
        needed = [name for name in SERVICES if name != "s3" or not endpoint]
        found = {name: service.port for name, service in self.running().items() if service.leader}
        # After one that is missing, the others have to be told where its next one is.
        missing = needed[next((at for at, name in enumerate(needed) if name not in found), len(needed)) :]
        if not missing and found["mlflow"] != port:
            raise StackError(f"MLflow runs on port {found['mlflow']} already: make stack-down comes first")
        self.stop(missing)
        if missing and is_taken(port):
            raise StackError(f"port {port} is in use by another program: PDNET_STACK_PORT names another")
        postgres, s3 = (free_port() if name in missing else found.get(name, 0) for name in ("postgres", "s3"))
        endpoint = endpoint or f"http://127.0.0.1:{s3}"
        try:
            if "postgres" in missing:
                self.start_postgres(postgres)
            if "s3" in missing:
                self.start_s3(s3)
            self.wait("postgres", lambda: postgres_answers(postgres, self.settings[DATABASE_PASSWORD]))
            self.wait("s3", lambda: s3_answers(endpoint, self.settings))
            if "mlflow" in missing:
                self.start_mlflow(port, postgres, endpoint)
            self.wait("mlflow", lambda: ask(port, "/health") == 200)
            make_user(self.settings)
        except BaseException:
            self.stop(missing)
            raise

    def running(self) -> dict[str, Service]:
        """The services that have processes."""
        import psutil

        found: dict[str, Service] = {}
        for process in psutil.process_iter():
            # Some are gone, or another user's, or PostgreSQL's children, which write their titles over it.
            with contextlib.suppress(psutil.Error, ValueError, OSError):
                folder, name, port = process.environ().get("PDNET_STACK", "::").rsplit(":", 2)
                if folder == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    known = found.get(name, Service(int(port), None, []))
                    leader = process if os.getsid(process.pid) == process.pid else known.leader
                    found[name] = Service(int(port), leader, [*known.processes, process])
        return found

    def stop(self, names: list[str] | tuple[str, ...] = SERVICES) -> list[str]:
        """Stop services, MLflow before what it needs, until nothing of them is left.

        Returns:
            Those that had processes.
        """
        import psutil

        found = {name: service for name, service in self.running().items() if name in names}
        for wave in (("mlflow",), ("postgres", "s3")):
            services = {name: found[name] for name in wave if name in found}
            for name, service in services.items():
                for process in [service.leader] if service.leader else service.processes:
                    with contextlib.suppress(psutil.Error):  # an interrupt tells PostgreSQL not to wait for its clients
                        process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
            everything = [process for service in services.values() for process in service.processes]
            for process in psutil.wait_procs(everything, LONGEST_STOP)[1]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        return list(found)

    def log(self, name: str) -> Path:
        """Where a service writes."""
        return self.folder / "logs" / f"{name}.log"

    def start(self, name: str, port: int, command: list[str], variables: Mapping[str, str], **user: Any) -> None:
        """Start a service; the log of its last start stays as NAME.log.1."""
        if self.log(name).exists():
            self.log(name).replace(f"{self.log(name)}.1")
        environment = os.environ | variables | {"PDNET_STACK": f"{self.folder}:{name}:{port}"}
        with self.log(name).open("wb") as out:
            # In a session of its own: an interrupt typed into the terminal is not for it.
            how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out, "start_new_session": True}
            self.started[name] = subprocess.Popen(command, cwd=self.folder, env=environment, **how, **user)  # noqa: S603

    def wait(self, name: str, answers: Callable[[], bool], log: Path | str | None = None) -> None:
        """Wait until a service answers; `log` is where a person finds what it says, if that is not its file here.

        Raises:
            StackError: it has ended, or takes too long.
        """
        end = time.monotonic() + LONGEST_START
        while not answers():
            if name in self.started and self.started[name].poll() is not None:
                lines = self.log(name).read_text(encoding="utf-8", errors="replace").splitlines() or ["nothing said"]
                reasons = [line for line in lines if re.search("FATAL|ERROR|Error:|Exception:|Failed", line)] or lines
                raise StackError(f"{name} has ended: {reasons[-1].strip()[:300]}; its log: {self.log(name)}")
            if time.monotonic() > end:
                raise StackError(f"{name} has not answered for {LONGEST_START} s; its log: {log or self.log(name)}")
            time.sleep(0.1)

    def start_postgres(self, port: int) -> None:
        """Start PostgreSQL, which refuses to be root, on a database that is made where there is none.

        Raises:
            StackError: there is no PostgreSQL, its user cannot reach the folder, or no database can be made.
        """
        programs = find_postgres()
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            accounts = {account.pw_name: account for account in pwd.getpwall()}
            account = accounts.get("postgres") or accounts["nobody"]
            user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            if subprocess.run(["test", "-x", self.folder], check=False, **user).returncode:  # noqa: S603, S607
                raise StackError(f"PostgreSQL runs as {account.pw_name}, who cannot get to {self.folder}: see --folder")
        data, fresh, key = (self.folder / f"postgres{end}" for end in ("", ".new", ".key"))
        if not data.exists():
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(mode=0o700)
            key.unlink(missing_ok=True)
            write_secret(key, self.settings[DATABASE_PASSWORD])
            for path in (fresh, key):
                os.chown(path, user.get("user", -1), user.get("group", -1))
            make = [programs["initdb"], f"--pgdata={fresh}", "--username=mlflow", f"--pwfile={key}"]
            make += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"]
            single = [programs["postgres"], "--single", "-D", str(fresh), "postgres"]
            with self.log("initdb").open("wb") as out:
                how: dict[str, Any] = {"cwd": self.folder, "stdout": out, "stderr": out, **user}
                try:
                    subprocess.run(make, check=True, **how)  # noqa: S603
                    subprocess.run(single, check=True, input=b"CREATE DATABASE mlflow;\n", **how)  # noqa: S603
                except subprocess.CalledProcessError:
                    raise StackError(f"PostgreSQL cannot make a database; its log: {self.log('initdb')}") from None
            key.unlink()
            fresh.rename(data)  # whole or not at all
        options = (f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=")
        command = [programs["postgres"], "-D", str(data), *(word for option in options for word in ("-c", option))]
        self.start("postgres", port, command, {}, **user)

    def start_s3(self, port: int) -> None:
        """Start rclone as S3 server of a folder, in which each bucket is a folder."""
        rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        if rclone is None:
            raise MissingError("no rclone, the S3 server: make setup, or PDNET_S3_ENDPOINT for one of your own")
        root = self.folder / "s3"
        root.mkdir(mode=0o700, exist_ok=True)
        (root / self.settings[BUCKET]).mkdir(exist_ok=True)
        pair = f'"{self.settings[S3_KEY]},{self.settings[S3_SECRET]}"'  # one field of a list in CSV
        command = [rclone, "serve", "s3", f"--addr=127.0.0.1:{port}", str(root)]
        self.start("s3", port, command, {"RCLONE_AUTH_KEY": pair, "RCLONE_CONFIG": ""})

    def start_mlflow(self, port: int, postgres: int, endpoint: str) -> None:
        """Start MLflow; where another version of it ran before, the tables are brought up to date first."""
        variables = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(postgres),
            "PGUSER": "mlflow",
            "PGPASSWORD": self.settings[DATABASE_PASSWORD],
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_DEFAULT_REGION": self.settings[REGION],
            "AWS_ACCESS_KEY_ID": self.settings[S3_KEY],
            "AWS_SECRET_ACCESS_KEY": self.settings[S3_SECRET],
            "MLFLOW_AUTH_CONFIG_PATH": str(HERE / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.settings[PASSWORDS["admin"]],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.settings[FLASK_KEY],
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # jobs of MLflow's own, for language models
        }
        mlflow = [sys.executable, "-m", "mlflow"]
        server = ["server", "--host=127.0.0.1", f"--port={port}", "--workers=2", "--app-name=basic-auth"]
        bucket = f"--artifacts-destination=s3://{self.settings[BUCKET]}"
        command = [*mlflow, *server, f"--backend-store-uri={DATABASE}", "--serve-artifacts", bucket]
        version, tables = importlib.metadata.version("mlflow"), self.folder / "mlflow.version"
        if not tables.exists() or tables.read_text(encoding="utf-8") != version:
            upgrade = shlex.join([*mlflow, "db", "upgrade", DATABASE])
            command = ["sh", "-c", f'{upgrade} && echo {version} >{tables.name} && exec "$0" "$@"', *command]
        self.start("mlflow", port, command, variables)


def check_libraries() -> None:
    """See that this Python has what MLflow needs as a server.

    Raises:
        MissingError: it has not.
    """
    libraries = ("mlflow", "psutil", "psycopg2", "boto3", "flask_wtf")
    if missing := [name for name in libraries if importlib.util.find_spec(name) is None]:
        raise MissingError(f"{sys.prefix} has no {', '.join(missing)}: make setup")


def find_postgres() -> dict[str, str]:
    """Paths of `postgres` and `initdb`: on PATH, else the newest of Debian's.

    Raises:
        MissingError: there is none.
    """
    debian = sorted(DEBIAN.glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, debian)])
    found = {name: where for name in ("postgres", "initdb") if (where := shutil.which(name, path=path))}
    if len(found) < 2:
        raise MissingError(f"no PostgreSQL on PATH or in {DEBIAN}: apt-get install postgresql")
    return found


def postgres_answers(port: int, password: str) -> bool:
    """Whether the database can be used yet."""
    import psycopg2

    try:
        psycopg2.connect(host="127.0.0.1", port=port, user="mlflow", password=password, connect_timeout=5).close()
    except psycopg2.OperationalError as error:
        if "password authentication failed" in str(error):
            raise StackError(f"PostgreSQL has another {DATABASE_PASSWORD}: that of its first start") from None
        return False
    return True


def s3_answers(endpoint: str, settings: Mapping[str, str]) -> bool:
    """Whether the bucket can be used yet."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, session = settings[BUCKET], boto3.Session(settings[S3_KEY], settings[S3_SECRET])
    once = Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 0})
    try:
        client = session.client("s3", settings[REGION], endpoint_url=endpoint, config=once)
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        reason = {403: f"refuses {S3_KEY}", 404: f"has no bucket {bucket}"}.get(status, f"answers {status}")
        raise StackError(f"S3 at {endpoint} {reason}") from None
    except (BotoCoreError, ValueError) as error:
        if settings[ENDPOINT]:
            raise StackError(f"S3 at {endpoint}: {error}") from None
        return False
    return True


def is_taken(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
