"""The command `kfp`: our `run FILE.py`, and all else as Kubeflow's own command has it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

pytest.importorskip("kfp")

from api_server import PipelinesAPI
from click.testing import CliRunner
from kfp.cli import cli
from pipeline_file import ROOT

from pdnet.kfp_command import split

pytestmark = pytest.mark.filterwarnings("ignore:This client only works:FutureWarning")

BIN = Path(sys.executable).parent
GOLDEN = ROOT / "tests" / "kubeflow" / "golden" / "pdnet.yaml"
OWN_HELP = "pdnet: `kfp run pipelines/pdnet.py --help` tells of running the pipeline.\n\n"
#: Values for the golden pipeline's parameters that have no default.
REQUIRED = ["params=seed: 0", "data_md5=d41d.dir", "image=pdnet", "code=4b825dc"]


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Endpoint:
    """An address that counts who comes, and answers nothing."""

    def __init__(self) -> None:
        self.visits = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.thread = threading.Thread(target=self.count)
        self.thread.start()

    def count(self) -> None:
        while True:
            visitor, address = self.socket.accept()
            visitor.close()
            if address[1] == self.last:
                return
            self.visits += 1

    last = -1

    def close(self) -> None:
        """Count no more; the farewell is a visit of our own."""
        farewell = socket.socket()
        farewell.bind(("127.0.0.1", 0))
        self.last = farewell.getsockname()[1]
        farewell.connect(self.socket.getsockname())
        self.thread.join()
        farewell.close()
        self.socket.close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    listening = Endpoint()
    yield listening
    listening.close()


@pytest.fixture(scope="module")
def api() -> Iterator[PipelinesAPI]:
    with PipelinesAPI() as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cluster but that of the test."""
    for name in os.environ:
        if name.startswith(("KF_", "KFP_", "KUBE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # Kubeflow's client warns each time that it is of version 2


def typed(*words: str, cwd: Path = ROOT, **environment: str) -> Result:
    """The installed command, as a process."""
    command = [str(BIN / "kfp"), *words]
    run = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)
    return Result(run.returncode, run.stdout, run.stderr)


def upstream(api: PipelinesAPI, *words: str) -> Result:
    """What Kubeflow's command does, which asks the server first; the width is that of a terminal of 80 columns."""
    env = {"KF_PIPELINES_ENDPOINT": api.url}
    run = CliRunner().invoke(cli.cli, words, obj={}, prog_name="kfp", env=env, terminal_width=78)
    return Result(run.exit_code, run.stdout, run.stderr)


# Help asks no server


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["run", "create", "--help"],
        ["runs", "list", "--help"],
        ["run", "submit", "--help"],  # an old name of `create`
        ["experiment", "create", "--help"],
        ["dsl", "compile", "--help"],
        ["run", "nonsense", "--help"],
        ["nonsense", "--help"],
    ],
    ids=" ".join,
)
def test_help_is_upstreams_and_asks_no_server(words, endpoint, api):
    result = typed(*words, KF_PIPELINES_ENDPOINT=endpoint.url)
    assert endpoint.visits == 0
    wanted = upstream(api, *words)
    own = OWN_HELP if words == ["run", "--help"] else ""
    assert result == wanted._replace(out=own + wanted.out)


@pytest.mark.parametrize("words", [["run"], ["experiment"]], ids=" ".join)
def test_a_group_alone_prints_its_help_and_asks_no_server(words, endpoint):
    result = typed(*words, KF_PIPELINES_ENDPOINT=endpoint.url)
    assert endpoint.visits == 0
    assert f"Usage: kfp {words[0]} [OPTIONS] COMMAND [ARGS]..." in result.out + result.err


def test_help_of_our_own_run(endpoint):
    result = typed("run", "pipelines/pdnet.py", "--help", KF_PIPELINES_ENDPOINT=endpoint.url)
    assert endpoint.visits == 0
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("usage: kfp run pipelines/pdnet.py [")
    assert "--runner {local,docker,cluster}" in result.out
    assert "gpus               per pod of the GPU tasks" in result.out


# All else is passed on


@pytest.mark.parametrize("words", [["nonsense"], ["run", "nonsense"], ["run", "--nonsense"]], ids=" ".join)
def test_what_upstream_does_not_know_it_says_itself(words, api):
    wanted = upstream(api, *words)
    assert wanted.code == 2
    assert typed(*words, KF_PIPELINES_ENDPOINT=api.url) == wanted


def test_runs_are_created_and_listed_as_before(api):
    created = typed("--endpoint", api.url, "run", "create", "-e", "trial", "-r", "first", "-f", str(GOLDEN), *REQUIRED)
    assert created.code == 0, created.err
    (identifier,) = api.runs
    assert f"Run details: {api.url}/#/runs/details/{identifier}" in created.out

    listed = typed("run", "list", KF_PIPELINES_ENDPOINT=api.url)
    assert listed.code == 0
    header, row = (line.split() for line in listed.out.splitlines())
    assert header == ["ID", "NAME", "CREATED", "AT", "STATE", "STORAGE", "STATE"]
    assert (row[0], row[1], row[-2], row[-1]) == (identifier, "first", "PENDING", "AVAILABLE")


def test_the_server_refuses_what_the_pipeline_does_not_take(api):
    """The stand-in does as the real server: the other tests rely on it."""
    words = ["run", "create", "-e", "trial", "-f", str(GOLDEN)]
    for given, said in (
        (REQUIRED[1:], "parameter params is not optional"),
        ([*REQUIRED, "speed=2"], "parameter(s) provided are not required by pipeline: speed"),
        ([*REQUIRED, "gpus=[1]"], "input parameter gpus requires type double or integer"),
    ):
        result = typed(*words, *given, KF_PIPELINES_ENDPOINT=api.url)
        assert result.code == 1
        assert said in result.err


def test_a_pipeline_is_compiled(tmp_path):
    (tmp_path / "hello.py").write_text(
        "from kfp import dsl\n\n@dsl.component\ndef greet(name: str) -> str:\n    return name\n\n"
        "@dsl.pipeline\ndef hello(name: str):\n    greet(name=name)\n"
    )
    result = typed("dsl", "compile", "--py", "hello.py", "--output", "hello.yaml", cwd=tmp_path)
    assert result.code == 0, result.err
    assert yaml.safe_load((tmp_path / "hello.yaml").read_text())["pipelineInfo"]["name"] == "hello"


def test_our_pipeline_is_compiled_from_any_folder(tmp_path):
    """Its file is called like our package."""
    result = typed("dsl", "compile", "--py", str(ROOT / "pipelines" / "pdnet.py"), "--output", "it.yaml", cwd=tmp_path)
    assert result.code == 0, result.err
    pipeline, platform = yaml.safe_load_all((tmp_path / "it.yaml").read_text())
    assert pipeline["pipelineInfo"]["name"] == "pdnet"
    assert platform["platforms"]["kubernetes"]


# Which is which


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("run FILE", ""),
        ("run FILE --wait gpus=1", "--wait gpus=1"),
        ("run --wait FILE gpus=1", "--wait gpus=1"),
        ("run --params a.yaml FILE", "--params a.yaml"),
        ("run -n team FILE", "-n team"),
        ("run --namespace=team FILE", "--namespace=team"),
        ("--endpoint http://here -n team run FILE --wait", "--endpoint http://here -n team --wait"),
        ("--endpoint=http://here run FILE", "--endpoint=http://here"),
    ],
)
def test_run_with_a_file_is_ours(words, options):
    given = [word.replace("FILE", "pipelines/pdnet.py") for word in words.split()]
    assert split(given) == (Path("pipelines/pdnet.py"), options.split())


@pytest.mark.parametrize(
    "words",
    [
        "",
        "run",
        "--help",
        "run --help",
        "run list",
        "run list --filter a.py",
        "run create -e trial -f a.yaml b.py=1",
        "-n team run get x",
        "dsl compile --py run.py --output a.yaml",
        "experiment create run",
    ],
)
def test_all_else_is_not(words):
    assert split(words.split()) is None


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("pipelines/nowhere.py", "no such file"),
        ("tests/conftest.py", "expected pipelines/pdnet.py of the project"),
    ],
)
def test_a_file_that_is_not_our_pipeline(file, said):
    result = typed("run", file)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"kfp: error: {file}: {said}")
    assert result.err.count("\n") == 1


# Two distributions with a script `kfp`


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, and one that is called like Kubeflow's and has its script."""
    base = tmp_path_factory.mktemp("wheels")
    shutil.copytree(ROOT / "pdnet", base / "pdnet" / "pdnet", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, base / "pdnet")
    package = base / "kfp" / "kfp"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "cli.py").write_text("import sys\n\ndef main():\n    print('upstream', *sys.argv[1:])\n")
    (base / "kfp" / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "kfp"\nversion = "2.17.0"\n[project.scripts]\nkfp = "kfp.cli:main"\n'
        '[tool.setuptools]\npackages = ["kfp"]\n'
    )
    for name in ("kfp", "pdnet"):
        build = ["-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
        subprocess.run([sys.executable, *build, "--wheel-dir", str(base / "dist"), str(base / name)], check=True)
    return base / "dist"


class Environment:
    """A fresh environment, and an installer that takes what it installs from a folder."""

    def __init__(self, folder: Path, installer: str, wheels: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.bin = folder / "bin"
        self.source = ["--no-index", "--find-links", str(wheels), "--no-deps"]
        python = str(self.bin / "python")
        self.installer = {
            "pip": [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"],
            "uv": [str(BIN / "uv"), "pip"],
        }[installer]
        self.target = ["--python", python] if installer == "uv" else []
        self.again = {"pip": "--force-reinstall", "uv": "--reinstall"}[installer]

    def install(self, *words: str) -> None:
        command = [*self.installer, "install", "--quiet", *self.target, *self.source, *words]
        subprocess.run(command, check=True, capture_output=True)

    def uninstall(self, name: str) -> None:
        sure = [] if self.target else ["--yes"]
        command = [*self.installer, "uninstall", "--quiet", *self.target, *sure, name]
        subprocess.run(command, check=True, capture_output=True)

    def kfp(self, *words: str) -> Result:
        run = subprocess.run([str(self.bin / "kfp"), *words], capture_output=True, text=True, check=False)
        return Result(run.returncode, run.stdout, run.stderr)

    def is_ours(self) -> bool:
        """`kfp run FILE.py` is ours, and all else still reaches Kubeflow's."""
        assert self.kfp("run", "list") == Result(0, "upstream run list\n", "")
        return self.kfp("run", "nowhere.py").err.startswith("kfp: error: nowhere.py: no such file")


@pytest.mark.slow
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_the_script_is_ours_where_the_project_is_installed_last(installer, wheels, tmp_path):
    if installer == "uv" and not (BIN / "uv").exists():
        pytest.skip("uv is not installed")
    documented = Environment(tmp_path / "documented", installer, wheels)
    documented.install("kfp")
    assert not documented.is_ours()
    documented.install("pdnet")
    assert documented.is_ours()

    # Kubeflow's package installed again, as by an upgrade, takes its script back.
    documented.install(documented.again, "kfp")
    assert not documented.is_ours()
    documented.install(documented.again, "pdnet")
    assert documented.is_ours()

    # Ours goes with the project, Kubeflow's comes back with its package.
    documented.uninstall("pdnet")
    assert not (documented.bin / "kfp").exists()
    documented.install(documented.again, "kfp")
    assert not documented.is_ours()

    wrong = Environment(tmp_path / "wrong", installer, wheels)
    wrong.install("pdnet")
    alone = wrong.kfp("--help")
    assert alone.code == 4
    assert alone.err == "kfp: error: the package 'kfp' is not installed; try: pip install 'pdnet[pipeline]'\n"
    wrong.install("kfp")
    assert not wrong.is_ours()
    wrong.install(wrong.again, "pdnet")
    assert wrong.is_ours()

    # Both at once: pip installs what a package needs before it, uv in no order.
    together = Environment(tmp_path / "together", installer, wheels)
    together.install("kfp", "pdnet")
    assert together.is_ours() or installer == "uv"
    together.install(together.again, "pdnet")
    assert together.is_ours()
