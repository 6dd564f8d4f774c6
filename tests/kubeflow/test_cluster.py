"""The pipeline on a cluster: the typed command against an API server, and what one sees when something is wrong."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

pytest.importorskip("kfp")

import kfp.client
import kubernetes.config.kube_config
from api_server import FAILURE, SUCCESS, Frame, PipelinesAPI
from pipeline_file import ROOT

from pdnet import kfp_command

sys.path.insert(0, str(ROOT))  # as the command does
from pipelines import run as pipeline_run

IMAGE = f"registry.example.com/pdnet@sha256:{'0123456789abcdef' * 4}"
MD5 = "8b27a972776e51b53dfe8b37b0d9025d.dir"
KUBE_TOKEN = "kube-token"


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: list[str]
    err: list[str]


Command = Callable[..., Result]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with data under version control and a DVC remote that a pod could read."""
    root = tmp_path_factory.mktemp("project") / "pdnet"
    for folder in ("pipelines", "components"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", ".gitignore"):
        shutil.copy(ROOT / name, root)
    (root / "data.dvc").write_text(f"outs:\n- md5: {MD5}\n  size: 10\n  nfiles: 2\n  hash: md5\n  path: data\n")
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text(
        "[core]\n    analytics = false\n    check_update = false\n    remote = store\n"
        "['remote \"store\"']\n    url = s3://bucket/dvc\n"
    )
    git(root, "init", "--quiet")
    commit(root)
    return root


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def commit(root: Path) -> str:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "A state")
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Path:
    root = tmp_path / "pdnet"
    shutil.copytree(template, root, symlinks=True)
    return root


@pytest.fixture
def api() -> Iterator[PipelinesAPI]:
    with PipelinesAPI() as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cluster, no token, no image; no settings of whoever runs the tests."""
    for name in os.environ:
        if name.startswith(("KF_", "KFP_", "KUBE", "PDNET_IMAGE", "MLFLOW_", "AWS_", "GIT_")):
            monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    use_kube_config(monkeypatch, tmp_path / "home" / ".kube" / "config")
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setattr(kfp.client.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "home" / "context.json"))


def use_kube_config(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Name it as the kube config; the library read the environment when it was imported."""
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))


def kube_config(path: Path, server: str) -> Path:
    """A kube config with one cluster and one user."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": server}}],
        "users": [{"name": "me", "user": {"token": KUBE_TOKEN}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def dvc() -> Callable[..., str]:
    """DVC's answers, asked for once a configuration."""
    known: dict[tuple[str, ...], str] = {}
    ask = pipeline_run.dvc

    def answer(root: Path, *words: str) -> str:
        key = ((root / ".dvc" / "config").read_text(), *words)
        if key not in known:
            known[key] = ask(root, *words)
        return known[key]

    return answer


@pytest.fixture
def typed(
    project: Path, dvc: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """`kfp ...` in the project's folder, without the seconds that a process of its own takes to start."""
    monkeypatch.setattr(pipeline_run, "dvc", dvc)

    def command(*words: str) -> Result:
        monkeypatch.chdir(project)
        monkeypatch.setattr(sys, "path", [*sys.path])
        try:
            code = kfp_command.main([str(word) for word in words])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return Result(code, out.splitlines(), err.splitlines())

    return command


@pytest.fixture
def submit(typed: Command, api: PipelinesAPI) -> Command:
    """`kfp run pipelines/pdnet.py` with an image and that API."""

    def command(*words: str) -> Result:
        return typed("run", "pipelines/pdnet.py", "--endpoint", api.url, f"image={IMAGE}", *words)

    return command


def console(project: Path, *words: str, **environment: str) -> Result:
    """The installed command, as a process of its own."""
    command = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    run = subprocess.run(
        command, cwd=project, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    return Result(run.returncode, run.stdout.splitlines(), run.stderr.splitlines())


def assert_one_line(result: Result, *parts: str, code: int = 2, prog: str = "kfp") -> None:
    """It ended with that exit code and one line on stderr, which has the parts."""
    assert result.code == code, result
    assert len(result.err) == 1, result.err
    line = result.err[0]
    assert line.startswith(f"{prog}: error: ")
    for part in parts:
        assert part in line
    assert len(line) < 400


# What a run looks like


def test_the_typed_command_submits_follows_and_succeeds(project, api):
    api.token = "good"
    words = ["--endpoint", api.url, "--existing-token", "good", "--wait", f"image={IMAGE}", "gpus=2"]
    result = console(project, "kfp", "run", "pipelines/pdnet.py", *words, "experiment=trial", 'gpu_type={"gpu": "L4"}')

    (identifier, sent), *others = api.runs.items()
    assert not others
    assert result.err == []
    assert result.out == [
        f"run {identifier}: {api.url}/#/runs/details/{identifier}",
        "data: running",
        "data: succeeded",
        "validate: running",
        "validate: succeeded",
        "outcome: succeeded",
        f"run {identifier}: succeeded",
    ]
    assert result.code == 0
    commit = git(project, "rev-parse", "HEAD")
    given = sent["runtime_config"]["parameters"]
    assert given.pop("params") == (project / "params.yaml").read_text()
    assert given == {
        "data_md5": MD5,
        "data_revision": commit,
        "data_remote": "s3://bucket/dvc",
        "image": IMAGE,
        "code": commit,
        "mlflow_uri": pipeline_run.CLUSTER_MLFLOW,
        "gpus": 2,
        "experiment": "trial",
        "gpu_type": {"gpu": "L4"},
    }
    assert sent["service_account"] == "pipeline-runner"
    assert api.experiments[sent["experiment_id"]]["display_name"] == "pdnet"
    assert MD5[:8] in sent["display_name"]
    assert commit[:8] in sent["display_name"]


def test_pdnet_run_is_the_same_and_a_failed_run_is_exit_code_1(project, api):
    api.frames = [FAILURE[0], Frame("FAILED", FAILURE[1].steps, {"train": "no space\nleft on device"})]
    result = console(project, "pdnet", "run", "--wait", KF_PIPELINES_ENDPOINT=api.url, PDNET_IMAGE=IMAGE)

    (identifier,) = api.runs
    assert (result.code, result.err) == (1, [])
    assert result.out[1:] == [
        "data: succeeded",
        "train: running",
        "train: failed: no space left on device",
        "outcome: succeeded",
        f"run {identifier}: failed at train",
    ]


def test_the_kube_config_alone_leads_to_the_cluster(typed, api, monkeypatch, tmp_path):
    """Through the Kubernetes API's proxy, with the kube config's own token."""
    api.kubernetes, api.token = True, KUBE_TOKEN
    use_kube_config(monkeypatch, kube_config(tmp_path / "kube", api.url))
    result = typed("run", "pipelines/pdnet.py", "--wait", f"image={IMAGE}")

    (identifier,) = api.runs
    assert (result.code, result.err) == (0, [])
    link = f"http://localhost:8080/#/runs/details/{identifier}"
    assert result.out[0].startswith(f"run {identifier}: {link} after `kubectl -n kubeflow port-forward")
    assert result.out[-1] == f"run {identifier}: succeeded"


def test_without_wait_it_returns_at_once(submit, api):
    result = submit()
    (identifier,) = api.runs
    assert (result.code, result.err) == (0, [])
    assert result.out == [f"run {identifier}: {api.url}/#/runs/details/{identifier}"]
    assert ("GET", f"/apis/v2beta1/runs/{identifier}") not in api.requests


def test_the_link_is_of_the_ui_where_that_is_elsewhere(submit, api, monkeypatch):
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "kubeflow.example.com/pipeline/")
    assert submit().out == [
        f"run {next(iter(api.runs))}: https://kubeflow.example.com/pipeline/#/runs/details/{next(iter(api.runs))}"
    ]


def test_a_second_run_goes_into_the_same_experiment(submit, api):
    assert submit().code == submit("--data-version", "HEAD").code == 0
    assert len(api.experiments) == 1
    assert len(api.runs) == 2


def test_no_cache_reaches_the_tasks_of_groups_too(submit, api):
    assert submit().code == submit("--no-cache").code == 0
    cached, uncached = (str(run["pipeline_spec"]) for run in api.runs.values())
    assert "'enableCache': True" in cached
    assert "enableCache" not in uncached


def test_a_state_is_told_once_and_groups_and_drivers_not_at_all(submit, api):
    api.frames = [SUCCESS[1]] * 3 + [SUCCESS[-1]]
    told = submit("--wait").out
    assert len(told) == len(set(told))
    assert {line.partition(":")[0] for line in told[1:-1]} == {"data", "validate", "outcome"}


def test_a_failed_step_counts_where_the_server_goes_by_the_exit_handler(submit, api):
    api.frames = [Frame("SUCCEEDED", FAILURE[1].steps)]
    result = submit("--wait")
    assert result.code == 1
    assert result.out[-1].endswith(": failed at train")


def test_a_cancelled_run_is_exit_code_1(submit, api):
    api.frames = [Frame("CANCELED", {"data": "SUCCEEDED"})]
    result = submit("--wait")
    assert result.code == 1
    assert result.out[-1].endswith(": canceled")


def test_an_api_that_goes_away_is_waited_for(submit, api):
    def away() -> None:
        api.stop()
        time.sleep(1.2)
        api.start()

    thread = threading.Thread(target=away)
    api.on_look = lambda look: thread.start() if look == 1 else None
    result = submit("--wait")
    thread.join()
    assert (result.code, result.err) == (0, [])
    (silence,) = [line for line in result.out if "no answer" in line]
    assert silence == f"{api.url}: no answer (Connection refused); asking on"
    assert result.out[result.out.index(silence) + 1] == "the API answers again"
    assert result.out[-1].endswith(": succeeded")


def test_an_api_that_stays_away_ends_the_wait_in_one_line(submit, api, monkeypatch):
    from pipelines import cluster

    monkeypatch.setattr(cluster, "PATIENCE", 0.6)
    thread = threading.Thread(target=api.stop)
    api.on_look = lambda look: thread.start() if look == 1 else None
    result = submit("--wait")
    thread.join()
    api.start()  # for the fixture's end
    assert_one_line(result, api.url, "no answer (Connection refused)")
    assert result.out[-1].startswith(f"run {next(iter(api.runs))} goes on: {api.url}/#/runs/")


def test_a_token_that_expires_ends_the_wait_at_once(submit, api):
    def expire(look: int) -> None:
        api.token = "another"

    api.on_look = expire
    result = submit("--wait", "--existing-token", "good")
    assert_one_line(result, "the token is refused (HTTP 401)")
    assert "goes on" in result.out[-1]


def test_a_login_page_in_the_middle_ends_the_wait(submit, api):
    def log_out(look: int) -> None:
        api.page = (200, "<html><form>Log in</form></html>")

    api.on_look = log_out
    assert_one_line(submit("--wait"), "no Kubeflow Pipelines API there any more")


def test_an_interrupted_wait_leaves_the_run(submit, api):
    api.on_look = lambda look: os.kill(os.getpid(), signal.SIGINT) if look == 1 else None
    result = submit("--wait")
    assert result.code == 130
    assert result.err == ["kfp: interrupted"]
    assert "goes on" in result.out[-1]


# Where a run goes


def placed(*words: str) -> pipeline_run.Place:
    return pipeline_run.placed(pipeline_run.parser("kfp").parse_intermixed_args(words), ROOT)


def test_nothing_configured_means_local():
    assert placed().runner == "local"


@pytest.mark.parametrize("name", ["KF_PIPELINES_ENDPOINT", "KFP_ENDPOINT"])
def test_an_endpoint_means_cluster(name, monkeypatch):
    monkeypatch.setenv(name, "http://here")
    assert (placed().runner, placed().endpoint) == ("cluster", "http://here")
    assert placed("--endpoint", "http://there").endpoint == "http://there"
    assert placed("--runner", "local").runner == "local"


def test_a_kube_config_means_cluster(monkeypatch, tmp_path):
    config = kube_config(tmp_path / "home" / ".kube" / "config", "http://here")
    assert (placed().runner, placed().endpoint) == ("cluster", None)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    assert placed().runner == "local"
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'missing'}{os.pathsep}{config}")
    assert placed().runner == "cluster"


def test_options_may_stand_before_run(typed, api):
    """As Kubeflow's own command takes them."""
    api.several_users = True
    words = ["--endpoint", api.url, "--namespace", "team", "run", "pipelines/pdnet.py", f"image={IMAGE}"]
    result = typed(*words)
    assert (result.code, result.err) == (0, [])
    (experiment,) = api.experiments.values()
    assert experiment["namespace"] == "team"


def test_the_token_may_come_from_the_environment(submit, api, monkeypatch):
    api.token = "good"
    monkeypatch.setenv("KFP_EXISTING_TOKEN", "good")
    assert submit().code == 0


# What is wrong is one line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["gpu=2"], ["no parameter 'gpu'", "did you mean 'gpus'?"]),
        (["speed=2"], ["no parameter 'speed'; it has params, data_md5"]),
        (["gpus=two"], ["gpus=two: expected int"]),
        (["gpus=true"], ["gpus=true: expected int"]),
        (["tensorrt=1"], ["tensorrt=1: expected bool"]),
        (["gpu_type=[a]"], ["gpu_type=[a]: expected dict"]),
        (["gpu_type={a"], ["gpu_type={a", "expected dict"]),
        (["gpus=-1"], ["gpus=-1: expected at least 0"]),
        (["nodes=0"], ["nodes=0: expected at least 1"]),
        (["gpus"], ["'gpus': expected key=value"]),
        (["image=pdnet:latest"], ["image: 'pdnet:latest', expected an image by digest"]),
        (["tensorrt=true", "tensorrt_image=trt:8"], ["tensorrt_image: 'trt:8', expected an image by digest"]),
        (["--params", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--policy", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--bounds", "nowhere.yaml"], ["nowhere.yaml", "expected the bounds of parity as YAML"]),
        (["--data-version", "v99"], ["--data-version v99: no such revision"]),
        (["--runner", "local"], ["--endpoint names a cluster, but --runner is local"]),
        (["--runner", "docker"], ["--endpoint names a cluster, but --runner is docker"]),
        (["--namespace", "team"], ["--namespace team: this Kubeflow has one user"]),
    ],
)
def test_wrong_input(words, parts, submit, api):
    assert_one_line(submit(*words), *parts)
    assert not api.runs


def test_no_image(typed, api):
    assert_one_line(typed("run", "pipelines/pdnet.py", "--endpoint", api.url), "image: none given", "PDNET_IMAGE")


def test_no_remote(project, submit, api):
    (project / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    assert_one_line(submit(), "no DVC remote", "dvc remote add --default")
    assert not api.runs


def test_a_remote_that_pods_cannot_read(project, submit, api, tmp_path):
    config = project / ".dvc" / "config"
    config.write_text(config.read_text().replace("s3://bucket/dvc", str(tmp_path / "remote")))
    assert_one_line(submit(), f"the DVC remote {tmp_path / 'remote'} is a folder here")
    assert not api.runs


def test_no_data(project, submit, api):
    (project / "data.dvc").unlink()
    assert_one_line(submit(), "data.dvc: missing or not a DVC file")
    assert not api.runs


def test_a_wrong_params_file(project, submit, api):
    (project / "wrong.yaml").write_text("train: {epoch: 3}\n")
    assert_one_line(submit("--params", "wrong.yaml"), "epoch", "epochs")
    assert not api.runs


def test_nobody_listens(typed):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        started = time.monotonic()
        result = typed("run", "pipelines/pdnet.py", "--endpoint", endpoint, f"image={IMAGE}")
    assert_one_line(result, f"{endpoint}: no answer (Connection refused)", "port forwarded")
    assert result.out == []
    assert time.monotonic() - started < 15  # the client itself asks for 25 seconds


@pytest.mark.parametrize(
    ("refusal", "token", "parts"),
    [
        (401, [], ["it wants a token (HTTP 401)", "--existing-token"]),
        (401, ["--existing-token", "bad"], ["the token is refused (HTTP 401)"]),
        (403, ["--existing-token", "bad"], ["refused (HTTP 403: Request header error", "token and namespace"]),
        (302, ["--existing-token", "bad"], ["sends on to", "/login (HTTP 302)", "--existing-token"]),
    ],
)
def test_a_token_that_is_not_known(refusal, token, parts, submit, api):
    api.token, api.refusal = "good", refusal
    result = submit(*token)
    assert_one_line(result, api.url, *parts)
    assert result.out == []


@pytest.mark.parametrize(
    "page",
    [
        (404, "<html>Not: [found</html>"),
        (404, ""),
        (200, "<html><title>A shop</title></html>"),
        (503, "<html>Away</html>"),
    ],
)
def test_an_endpoint_that_is_something_else(page, submit, api):
    api.page = page
    result = submit()
    assert_one_line(result, api.url, "HTTP 503" if page[0] == 503 else "no Kubeflow Pipelines API there")
    assert result.out == []


def test_an_endpoint_that_speaks_no_tls(typed, api):
    result = typed("run", "pipelines/pdnet.py", "--endpoint", f"127.0.0.1:{api.port}", f"image={IMAGE}")
    assert_one_line(result, f"127.0.0.1:{api.port}: no answer (SSLError")


def test_an_endpoint_that_is_no_address(typed):
    assert_one_line(typed("run", "pipelines/pdnet.py", "--endpoint", "http://[x", f"image={IMAGE}"), "http://[x")


def test_what_the_server_refuses(submit, api):
    api.faults["POST", "runs"] = (500, "Failed to create a run: exceeded quota:\n  gpu")
    assert_one_line(submit(), "HTTP 500: Failed to create a run: exceeded quota: gpu")


def test_several_users_and_none_named(submit, api):
    api.several_users = True
    assert_one_line(submit(), "several users: --namespace NAME")


def test_a_kube_config_that_cannot_be_used(typed, monkeypatch, tmp_path):
    (tmp_path / "empty").touch()
    use_kube_config(monkeypatch, tmp_path / "empty")
    result = typed("run", "pipelines/pdnet.py", f"image={IMAGE}")
    assert_one_line(result, "kube config: there is none, or it cannot be used", "--runner local")


def test_a_kube_config_of_a_cluster_without_kubeflow(typed, api, monkeypatch, tmp_path):
    api.kubernetes, api.installed = True, False
    use_kube_config(monkeypatch, kube_config(tmp_path / "kube", api.url))
    result = typed("run", "pipelines/pdnet.py", f"image={IMAGE}")
    assert_one_line(result, "kube config: HTTP 404", "ml-pipeline:http", "--runner local")


def test_a_token_without_an_endpoint(typed, api, monkeypatch, tmp_path):
    use_kube_config(monkeypatch, kube_config(tmp_path / "kube", api.url))
    result = typed("run", "pipelines/pdnet.py", "--existing-token", "good", f"image={IMAGE}")
    assert_one_line(result, "a token is given", "--endpoint URL")


@pytest.mark.parametrize("several", [False, True])
def test_a_missing_secret(several, submit, api, monkeypatch, tmp_path):
    namespace = "team" if several else "kubeflow"
    api.several_users, api.secrets = several, {(namespace, "pdnet-s3"): 404}
    use_kube_config(monkeypatch, kube_config(tmp_path / "kube", api.url))
    result = submit(*(["--namespace", "team"] if several else []))
    assert_one_line(result, f"namespace '{namespace}' has no Secret 'pdnet-s3'", "kubectl -n", "create secret")
    assert not api.runs


@pytest.mark.parametrize("why", ["forbidden", "another cluster", "no cluster", "not S3"])
def test_a_secret_that_we_may_not_look_at_is_not_missing(why, project, submit, api, monkeypatch, tmp_path):
    api.secrets = {("kubeflow", "pdnet-s3"): 403 if why == "forbidden" else 404}
    server = "http://127.0.0.1:9" if why == "no cluster" else api.url
    if why == "another cluster":
        server += "/elsewhere"
    if why == "not S3":
        config = project / ".dvc" / "config"
        config.write_text(config.read_text().replace("s3://", "gs://"))
    use_kube_config(monkeypatch, kube_config(tmp_path / "kube", server))
    assert submit().code == 0
    assert len(api.runs) == 1
