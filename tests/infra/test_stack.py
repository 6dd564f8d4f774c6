"""The MLflow server with PostgreSQL and S3: real processes, natively; the compose file as far as no image is needed."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import yaml
from mlflow_server import STACK, free_port, kept_secrets, skip_without_postgres, stack, stack_folder

ROOT = Path(__file__).parents[2]
COMPOSE = STACK.with_name("compose.yaml")
ADMIN, USER = "PDNET_STACK_ADMIN_PASSWORD", "PDNET_STACK_USER_PASSWORD"


class Place(NamedTuple):
    """A stack that runs."""

    folder: Path
    port: int
    up: subprocess.CompletedProcess[str]

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def secrets(self) -> dict[str, str]:
        return kept_secrets(self.folder)

    def password(self, user: str) -> str:
        return self.secrets[{"admin": ADMIN, "pdnet": USER}[user]]

    def get(self, path: str, user: str | None = None, password: str = "", body: dict[str, str] | None = None) -> int:
        """The status of an answer."""
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(self.uri + path, data, {"Content-Type": "application/json"})
        if user is not None:
            request.add_header("Authorization", "Basic " + b64encode(f"{user}:{password}".encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def processes(self) -> list[psutil.Process]:
        """What runs: leaders, found by what they are called with, and everything in their sessions."""
        marks = (str(self.folder), f"--port={self.port}")
        leaders = {
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if any(mark in word for word in process.info["cmdline"] or () for mark in marks)
        } & {process.pid for process in psutil.process_iter() if session(process.pid) == process.pid}
        return [process for process in psutil.process_iter() if session(process.pid) in leaders]


def session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def two_places() -> Iterator[tuple[Place, Place]]:
    """Two stacks side by side, started at the same time."""
    with stack_folder() as first, stack_folder() as second:
        folders, ports = (first, second), (free_port(), free_port())
        with ThreadPoolExecutor() as pool:
            calls = [pool.submit(stack, "up", folder, port=port) for folder, port in zip(folders, ports, strict=True)]
        for call in calls:
            skip_without_postgres(call.result())
        one, other = (Place(*facts, call.result()) for *facts, call in zip(folders, ports, calls, strict=True))
        yield one, other


@pytest.fixture(scope="module")
def place(two_places: tuple[Place, Place]) -> Place:
    """A stack that no test stops."""
    return two_places[0]


@pytest.fixture
def client(place: Place, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's client as a function of the user; no key of any S3 server is in its environment."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    import mlflow

    def sign_in(user: str, at: Place = place) -> mlflow.MlflowClient:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", at.password(user))
        return mlflow.MlflowClient(at.uri)

    return sign_in


def test_up_says_where_it_is_and_shows_no_secret(place: Place) -> None:
    lines = place.up.stdout.splitlines()
    assert lines[0] == f"MLflow: {place.uri}"
    assert ADMIN in lines[1] and str(place.folder / "secrets.env") in lines[1]
    assert not [value for value in place.secrets.values() if value in place.up.stdout + place.up.stderr]
    script = (
        f'{lines[2]}; printf "%s %s %s" "$MLFLOW_TRACKING_URI" "$MLFLOW_TRACKING_USERNAME" "$MLFLOW_TRACKING_PASSWORD"'
    )
    shell = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert shell.stdout == f"{place.uri} pdnet {place.secrets[USER]}"


def test_nothing_goes_without_signing_in(place: Place) -> None:
    search = "/api/2.0/mlflow/experiments/search?max_results=1"
    files = "/api/2.0/mlflow-artifacts/artifacts"
    assert [place.get(path) for path in ("/", search, files, "/graphql")] == [401] * 4
    assert place.get(search, "admin", "wrong") == place.get(search, "pdnet", place.secrets[ADMIN]) == 401
    assert [place.get(search, user, place.password(user)) for user in ("admin", "pdnet")] == [200, 200]
    assert place.get("/health") == 200  # for probes


def test_the_pipelines_user_makes_and_reads_but_does_not_touch_what_is_somebody_elses(client: Any) -> None:
    from mlflow.exceptions import MlflowException

    theirs = client("admin").create_experiment("theirs")
    client("admin").create_registered_model("theirs")
    mlflow = client("pdnet")
    run = mlflow.create_run(mlflow.create_experiment("ours"))
    mlflow.log_metric(run.info.run_id, "jf_mean", 0.5)
    mlflow.create_registered_model("ours")
    version = mlflow.create_model_version("ours", f"{run.info.artifact_uri}/model", run.info.run_id)
    mlflow.set_registered_model_alias("ours", "candidate", version.version)
    mlflow.set_model_version_tag("ours", version.version, "approved", "yes")
    assert mlflow.get_model_version_by_alias("ours", "candidate").version == version.version
    assert mlflow.get_experiment(theirs).name == "theirs"
    for touch in (
        lambda: mlflow.delete_experiment(theirs),
        lambda: mlflow.create_run(theirs),
        lambda: mlflow.delete_registered_model("theirs"),
        lambda: mlflow.set_registered_model_tag("theirs", "note", "mine"),
    ):
        with pytest.raises(MlflowException, match=r"Permission denied|403"):
            touch()
    assert client("admin").get_experiment(theirs).lifecycle_stage == "active"


def test_only_the_administrator_makes_users(place: Place) -> None:
    path, friend = "/api/2.0/mlflow/users/create", {"username": "friend", "password": "a password of a friend"}
    assert place.get(path, "pdnet", place.password("pdnet"), friend) == 403
    assert place.get(path, body=friend) == 401
    assert place.get(path, "admin", place.password("admin"), friend) == 200


def test_an_artifact_goes_to_the_bucket_and_back_without_a_key(place: Place, client: Any, tmp_path: Path) -> None:
    mlflow = client("pdnet")
    content = bytes(range(256)) * 40_000  # 10 MB: more than S3 takes in one part
    (tmp_path / "weights.bin").write_bytes(content)
    run = mlflow.create_run(mlflow.create_experiment("artifacts"))
    mlflow.log_artifact(run.info.run_id, str(tmp_path / "weights.bin"), "model")
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    (stored,) = (place.folder / "s3" / "pdnet-mlflow").rglob("weights.bin")
    assert stored.read_bytes() == content
    back = mlflow.download_artifacts(run.info.run_id, "model/weights.bin", str(tmp_path / "back"))
    assert Path(back).read_bytes() == content


def test_the_bucket_wants_a_key(place: Place) -> None:
    (s3,) = (process for process in place.processes() if process.name() == "rclone")
    (address,) = (link.laddr for link in s3.net_connections("tcp") if link.status == psutil.CONN_LISTEN)
    for path in ("", "pdnet-mlflow", "pdnet-mlflow/1"):
        with pytest.raises(urllib.error.HTTPError, match=r"40[03]"):
            urllib.request.urlopen(f"http://127.0.0.1:{address.port}/{path}", timeout=10)


def test_only_this_machine_gets_to_it(place: Place) -> None:
    listening = {
        link.laddr
        for process in place.processes()
        for link in process.net_connections("tcp")
        if link.status == psutil.CONN_LISTEN
    }
    assert len(listening) == 3
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_secrets_are_in_one_file_that_nobody_else_reads(place: Place) -> None:
    secrets = set(place.secrets.values())
    assert len(secrets) == 6 and min(map(len, secrets)) >= 32
    holders = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in place.folder.rglob("*")
        if path.is_file()
        and "postgres" not in path.parts
        and any(secret.encode() in path.read_bytes() for secret in secrets)
    }
    assert holders == {"secrets.env": 0o600}
    assert stat.S_IMODE((place.folder / "postgres").stat().st_mode) == 0o700
    commands = [word for process in place.processes() for word in process.cmdline()]
    assert len(place.processes()) > 5
    assert not [word for word in commands for secret in secrets if secret in word]


def test_the_same_up_again_changes_nothing(place: Place) -> None:
    before = {process.pid for process in place.processes() if process.name() != "postgres"}
    again = stack("up", place.folder, port=place.port)
    assert (again.returncode, again.stdout) == (0, place.up.stdout)
    assert {process.pid for process in place.processes() if process.name() != "postgres"} == before
    status = stack("status", place.folder)
    assert status.returncode == 0
    assert f"127.0.0.1:{place.port}" in status.stdout


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({ADMIN: "not the one"}, f"MLflow does not let admin in: it has another {ADMIN}"),
        ({USER: "not the one"}, f"MLflow does not let pdnet in: it has another {USER}"),
        ({"PDNET_STACK_POSTGRES_PASSWORD": "not the one"}, "PostgreSQL has another PDNET_STACK_POSTGRES_PASSWORD"),
        ({"PDNET_S3_SECRET_KEY": "not the one"}, "refuses PDNET_S3_ACCESS_KEY"),
        ({"PDNET_S3_BUCKET": "another"}, "has no bucket another"),
        ({"PDNET_S3_ENDPOINT": "http://127.0.0.1:1"}, "S3 at http://127.0.0.1:1"),
        ({"PDNET_STACK_PORT": "many"}, "PDNET_STACK_PORT=many: expected a number"),
        ({"PDNET_STACK_PORT": "1"}, "already: make stack-down comes first"),
    ],
)
def test_what_does_not_fit_is_one_line_and_stops_nothing(place: Place, variables: dict[str, str], reason: str) -> None:
    up = stack("up", place.folder, **{"PDNET_STACK_PORT": str(place.port)} | variables)
    assert (up.returncode, up.stdout) == (2, "")
    assert reason in up.stderr
    assert up.stderr.count("\n") == 1
    assert "not the one" not in up.stderr
    assert place.get("/health") == 200


def test_two_stacks_know_nothing_of_each_other(two_places: tuple[Place, Place]) -> None:
    one, other = two_places
    path = "/api/2.0/mlflow/users/current"
    assert one.get(path, "pdnet", one.secrets[USER]) == other.get(path, "pdnet", other.secrets[USER]) == 200
    assert other.get(path, "pdnet", one.secrets[USER]) == 401
    assert not {process.pid for process in one.processes()} & {process.pid for process in other.processes()}


def test_down_leaves_no_process_and_up_finds_everything(
    two_places: tuple[Place, Place], client: Any, tmp_path: Path
) -> None:
    one, place = two_places
    mlflow = client("pdnet", place)
    run = mlflow.create_run(mlflow.create_experiment("kept"))
    (tmp_path / "note.txt").write_text("kept")
    mlflow.log_artifact(run.info.run_id, str(tmp_path / "note.txt"))
    mlflow.create_registered_model("kept")

    # What was started is killed, the workers of MLflow live on.
    (leader,) = (process for process in place.processes() if f"--port={place.port}" in process.cmdline())
    family = place.processes()
    leader.kill()
    leader.wait(10)
    down = stack("down", place.folder)
    assert down.returncode == 0, down.stderr
    _, alive = psutil.wait_procs(family, 5)
    assert not alive
    assert not answers(place.port)
    assert stack("status", place.folder).returncode == 1
    assert one.get("/health") == 200

    secrets = place.secrets
    (place.folder / "mlflow.version").write_text("3.16.0")  # another MLflow made the tables
    up = stack("up", place.folder, port=place.port)
    assert (up.returncode, up.stdout) == (0, place.up.stdout), up.stderr
    assert place.secrets == secrets
    assert (place.folder / "mlflow.version").read_text() != "3.16.0"
    assert "Updating database tables" in (place.folder / "logs" / "mlflow.log").read_text()
    mlflow = client("pdnet", place)
    assert mlflow.get_experiment_by_name("kept").experiment_id == run.info.experiment_id
    assert mlflow.get_registered_model("kept").name == "kept"
    back = mlflow.download_artifacts(run.info.run_id, "note.txt", str(tmp_path / "back"))
    assert Path(back).read_text() == "kept"


def test_a_port_in_use_is_one_line_and_leaves_nothing_running(two_places: tuple[Place, Place]) -> None:
    with stack_folder() as folder:
        up = stack("up", folder, port=two_places[0].port)
        assert (up.returncode, up.stdout) == (2, "")
        assert f"port {two_places[0].port} is in use by another program" in up.stderr
        assert not Place(folder, 0, up).processes()


def test_a_service_that_ends_is_named_with_its_log_and_the_others_stop(two_places: tuple[Place, Place]) -> None:
    with stack_folder() as folder:
        (folder / "postgres").mkdir()  # no database
        up = stack("up", folder, port=free_port())
        assert up.returncode == 2
        assert re.search("postgres has ended: .*; its log: .*/logs/postgres.log", up.stderr)
        assert not Place(folder, -1, up).processes()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to be somebody else for PostgreSQL")
def test_a_folder_that_postgres_cannot_reach_is_one_line(two_places: tuple[Place, Place], tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    up = stack("up", tmp_path / "closed" / "stack", port=free_port())
    assert up.returncode == 2
    assert re.fullmatch("stack: PostgreSQL runs as .*, who cannot get to .*: see --folder\n", up.stderr)


def test_without_postgres_it_says_what_to_install(tmp_path: Path) -> None:
    script = (
        f"import sys, pathlib; sys.path.insert(0, {str(STACK.parent)!r}); import native, stack; "
        f"native.DEBIAN = pathlib.Path({str(tmp_path)!r}); sys.exit(stack.main())"
    )
    command = [sys.executable, "-c", script, "up", "--native", "--folder", str(tmp_path / "stack")]
    up = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert up.returncode == 4
    assert re.fullmatch("stack: no PostgreSQL on PATH or in .*: apt-get install postgresql\n", up.stderr)


def test_keys_of_somebody_elses_s3_are_not_guessed(tmp_path: Path) -> None:
    up = stack("up", tmp_path, port=5000, PDNET_S3_ENDPOINT="https://s3.example.org")
    assert up.returncode == 2
    assert "PDNET_S3_ACCESS_KEY and PDNET_S3_SECRET_KEY must be set too" in up.stderr


# The way through containers.


def test_docker_compose_gets_secrets_by_the_environment_alone(tmp_path: Path) -> None:
    docker, log = tmp_path / "bin" / "docker", tmp_path / "log"
    docker.parent.mkdir()
    docker.write_text(f'#!/bin/sh\necho "$@" >>{log}\n[ "$2" != --file ] || {{ env >>{log}; exit 1; }}\n')
    docker.chmod(0o755)
    command = [sys.executable, str(STACK), "up", "--folder", str(tmp_path / "stack")]
    variables = os.environ | {"PATH": f"{docker.parent}:{os.environ['PATH']}", "PDNET_STACK_PORT": "5001"}
    up = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert up.returncode == 2 and "docker compose up has failed" in up.stderr
    version, info, call, *environment = log.read_text().splitlines()
    assert (version, info) == ("compose version", "info")
    assert call == f"compose --file {COMPOSE} --profile s3 up --detach"
    secrets = kept_secrets(tmp_path / "stack")
    assert {f"{name}={value}" for name, value in secrets.items()} <= set(environment)
    assert "PDNET_STACK_PORT=5001" in environment


def test_the_compose_file_is_one_by_the_specification() -> None:
    check = shutil.which("check-jsonschema", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if check is None:
        pytest.skip("no check-jsonschema, which holds the specification's schema: pip install check-jsonschema")
    command = [check, "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_compose_file_is_the_same_server() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    native = STACK.with_name("native.py").read_text()
    for word in services["mlflow"]["command"][2:]:
        flag = word.partition("=")[0]
        assert f'"{flag}' in native, f"native.py starts MLflow without {flag}"
    assert "DATABASE = " + json.dumps(services["migrate"]["command"][3]) in native
    for name in services["mlflow"]["environment"]:
        assert f'"{name}"' in native or name in ("HOME", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY")
    cluster = yaml.safe_load_all((ROOT / "infra/k8s/base/mlflow/postgres.yaml").read_text())
    names = {
        container["image"]
        for each in cluster
        if each["kind"] == "StatefulSet"
        for container in each["spec"]["template"]["spec"]["containers"]
    }
    tags = yaml.safe_load((ROOT / "infra/k8s/base/mlflow/kustomization.yaml").read_text())["images"]
    assert services["postgres"]["image"] in {
        f"{image['name']}:{image['newTag']}" for image in tags if image["name"] in names
    }


def test_containers_are_closed_and_restricted() -> None:
    text = COMPOSE.read_text()
    whole = yaml.safe_load(text)
    for name, service in whole["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name
        assert ("ports" in service) == (name == "mlflow")
        assert not re.search(r":latest$|^[^:]+$", service["image"]), name
        assert "healthcheck" in service or name == "migrate"
        if name in ("postgres", "s3"):
            assert service["networks"] == ["inside"] and service["volumes"][0].split(":")[0] in whole["volumes"]
    assert whole["networks"]["inside"]["internal"] is True
    settings = STACK.with_name("settings.py").read_text()
    for name, rest in re.findall(r"\$\{(\w+)([^}]*)\}", text):
        assert f'"{name}"' in settings, name
        assert rest == ":?" or rest.startswith(":-"), f"{name} has neither a default nor an error"
