"""The images: how they are built (no Docker needed), and what is and works in the one that was built."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "infra" / "images"
STAGES = ("cpu", "cuda", "tensorrt")
#: Beside the project: what git needs to make a commit, and nothing of this machine.
IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@example.org")
FAKE_DOCKER = """#!/bin/sh
case $1 in image | pull) exit "${FAKE_EXIT:-0}" ;; buildx) exit 0 ;; esac
for word; do printf '%s\\n' "$word" >>"$LOG"; done
for word; do case $word in id=index,src=*) cat "${word#id=index,src=}" >"$LOG.secret"; esac; done
"""


def pins(path: Path) -> dict[str, set[str]]:
    """Name and versions (by Python version there may be two) of each package that a requirements file pins."""
    found: dict[str, set[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            assert "==" in line, f"{path.name}: {line} is not pinned"
            name, version = line.partition(" ;")[0].split("==")
            found.setdefault(name, set()).add(version)
    return found


def normal(name: str) -> str:
    """A package's name as an index knows it."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Builds:
    """The project as a repository of its own, built by the real script and a `docker` that notes what it is told."""

    def __init__(self, root: Path) -> None:
        self.root = root / "project"
        self.log = root / "docker.log"
        self.docker = root / "docker"
        self.docker.write_text(FAKE_DOCKER)
        self.docker.chmod(0o755)
        shutil.copytree(IMAGES, self.root / "infra" / "images")
        (self.root / "pdnet").mkdir()
        (self.root / "docs").mkdir()
        for name in ("README.md", "pdnet/cli.py", "docs/note.md", "pyproject.toml", "requirements.lock"):
            (self.root / name).write_text(f"{name}\n")
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git(*IDENTITY, "commit", "--quiet", "-m", "The project")

    def git(self, *words: str) -> str:
        run = subprocess.run(["git", *words], cwd=self.root, check=True, capture_output=True, text=True)
        return run.stdout.strip()

    def build(self, *words: str, code: int = 0, **environment: str) -> list[str]:
        """What `docker build` was told, word by word."""
        self.log.unlink(missing_ok=True)
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        kept |= {"DOCKER": str(self.docker), "LOG": str(self.log), "PIP_CONFIG_FILE": os.devnull, **environment}
        script = self.root / "infra" / "images" / "build.sh"
        run = subprocess.run([str(script), *words], check=False, env=kept, capture_output=True, text=True)
        assert run.returncode == code, run.stdout + run.stderr
        return self.log.read_text().splitlines() if self.log.is_file() else []

    def commit_of_image(self) -> str:
        (found,) = {word for word in self.build(STAGES="cpu") if word.startswith("GIT_COMMIT=")}
        return found.removeprefix("GIT_COMMIT=")


@pytest.fixture
def builds(tmp_path: Path) -> Builds:
    return Builds(tmp_path)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, its text), continuation lines joined."""
    text = re.sub(r"^#.*\n", "", (IMAGES / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines())
    return [(word.upper(), " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines if line)]


def stage_of_dockerfile(name: str) -> list[tuple[str, str]]:
    """The instructions of a stage, with those of the stages that it stands on; TORCH_INDEX unset."""
    stages: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for word, text in instructions():
        if word == "FROM":
            below, _, title = text.partition(" AS ")
            current = stages.setdefault(title, list(stages.get(below.replace("${TORCH_INDEX:+-cpu}", ""), [])))
        else:
            current.append((word, text))
    return stages[name]


def test_what_is_installed_is_pinned() -> None:
    lock = pins(ROOT / "requirements.lock")
    assert lock["boto3"] == lock["botocore"], "boto3 and botocore are released as a pair"
    assert "cyclonedx-bom" in pins(IMAGES / "sbom.txt")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_plain_job(stage: str) -> None:
    steps = stage_of_dockerfile(stage)
    words = [word for word, _ in steps]
    assert "HEALTHCHECK" not in words
    assert "ADD" not in words
    assert [text for word, text in steps if word == "ENTRYPOINT"] == (["[]"] if stage == "tensorrt" else [])
    assert steps[-1] == ("USER", "65532:65532"), "the last word on the user is a number that is not root"
    assert not [text for word, text in steps if word == "COPY" and "--from" in text], "tools are mounted, not copied"
    labels = " ".join(text for word, text in steps if word == "LABEL")
    assert 'org.opencontainers.image.revision="${GIT_COMMIT}"' in labels
    assert ("ENV", "PDNET_GIT_COMMIT=${GIT_COMMIT}") in steps
    assert [text for word, text in steps if word == "ARG" and "GIT_COMMIT=" in text]


def test_the_stages_give_a_step_the_same_environment() -> None:
    words = ("ENV", "WORKDIR", "CMD")
    first, *others = ([step for step in stage_of_dockerfile(stage) if step[0] in words] for stage in STAGES)
    assert first
    assert all(other == first for other in others)


def test_what_changes_with_every_commit_comes_after_what_is_large() -> None:
    for stage in STAGES:
        steps = stage_of_dockerfile(stage)
        large = max(index for index, (word, text) in enumerate(steps) if word == "RUN" and "--requirements" in text)
        changing = min(index for index, (_, text) in enumerate(steps) if "from=wheel" in text or "GIT_COMMIT" in text)
        assert large < changing


def test_the_build_gets_the_files_that_it_copies_and_no_others() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert lines[1] == "*"
    copies = [text.split()[:-1] for word, text in instructions() if word == "COPY" and "--from" not in text]
    copied = [source for sources in copies for source in sources]
    assert all((ROOT / source).exists() for source in copied)
    assert {"infra/images" if source.startswith("infra/images") else source for source in copied} == allowed


def test_the_commit_is_that_of_the_files_in_the_image(builds: Builds) -> None:
    head = builds.git("rev-parse", "HEAD")
    (builds.root / "docs" / "note.md").write_text("changed\n")  # is in no image
    assert builds.commit_of_image() == head

    (builds.root / "pdnet" / "cli.py").write_text("changed\n")
    changed = builds.commit_of_image()
    assert re.fullmatch(head + "-dirty\\.[0-9a-f]{8}", changed)
    (builds.root / "pdnet" / "new.py").write_text("new\n")  # git does not know it, the image has it
    more = builds.commit_of_image()
    assert re.fullmatch(head + "-dirty\\.[0-9a-f]{8}", more)
    assert more != changed

    shutil.rmtree(builds.root / ".git")  # an archive of the project, say
    assert builds.commit_of_image() == ""


def test_each_stage_is_built_with_what_the_variables_say(builds: Builds) -> None:
    words = builds.build(
        STAGES="cpu tensorrt", IMAGE="site/pdnet", TENSORRT_BASE="trt:1", TORCH_INDEX="https://torch.example"
    )
    built = [words[index + 1] for index, word in enumerate(words) if word in ("--target", "--tag")]
    assert built == ["cpu", "site/pdnet:cpu", "tensorrt", "site/pdnet:tensorrt"]
    assert {"TENSORRT_BASE=trt:1", "TORCH_INDEX=https://torch.example", "BASE=python:3.11-slim-bookworm"} <= set(words)

    words = builds.build("sbom", STAGES="cuda", BASE="python:3.12")
    assert words[words.index("--output") + 1] == "type=local,dest=build/images/cuda"
    assert {"STAGE=cuda", "BASE=python:3.12"} <= set(words)
    assert not [word for word in words if word.startswith(("TENSORRT_BASE", "TORCH_INDEX"))]


def test_a_package_index_with_a_password_is_a_secret_of_the_build(builds: Builds) -> None:
    words = builds.build(STAGES="cpu", PIP_INDEX_URL="https://me:pass@packages.example/simple")
    assert not [word for word in words if "packages.example" in word]
    secret = Path(f"{builds.log}.secret").read_text()
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
        assert f"{name}='https://me:pass@packages.example/simple'" in secret
    (source,) = (word.partition("src=")[2] for word in words if word.startswith("id=index"))
    assert not Path(source).exists()


def test_a_base_that_cannot_be_pulled_is_made_only_where_none_was_named(builds: Builds) -> None:
    made = builds.root / "made"
    (builds.root / "infra" / "images" / "base.sh").write_text(f"#!/bin/sh\ntouch {made}\n")
    assert builds.build(code=4, STAGES="cpu", BASE="no/such:base", FAKE_EXIT="1") == []
    assert not made.exists()
    assert "pdnet:cpu" in builds.build(STAGES="cpu", FAKE_EXIT="1")
    assert made.exists()


def test_the_scripts_can_be_run() -> None:
    for name in ("build.sh", "base.sh", "run-uv"):
        path = IMAGES / name
        assert path.stat().st_mode & stat.S_IXUSR
        subprocess.run(["sh", "-n", str(path)], check=True)


# --- with Docker, in the image that `make images` built ---

IMAGE = os.environ.get("PDNET_TEST_IMAGE", "pdnet:cpu")
#: As a cluster that trusts nobody runs it.
CONFINED = ("--user", "12345:12345", "--read-only", "--tmpfs", "/tmp", "--network", "none", "--cap-drop", "ALL")


@pytest.fixture(scope="module")
def image() -> dict[str, Any]:
    """What Docker says of the image."""
    if shutil.which("docker") is None:
        pytest.skip("Docker is not installed")
    run = subprocess.run(["docker", "image", "inspect", IMAGE], check=False, capture_output=True, text=True)
    if run.returncode:
        pytest.skip(f"{run.stderr.strip()}; `make images` builds it where Docker runs")
    (found,) = json.loads(run.stdout)
    return dict(found)


def confined(*command: str, code: int = 0, options: tuple[str, ...] = ()) -> str:
    """Run a command in the image as somebody without a name, without network, nowhere to write but /tmp."""
    run = subprocess.run(
        ["docker", "run", "--rm", *CONFINED, *options, IMAGE, *command], check=False, capture_output=True, text=True
    )
    assert run.returncode == code, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def installed(image: dict[str, Any]) -> dict[str, str]:
    """Packages in the image, with their versions."""
    found = confined(
        "python3",
        "-c",
        "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))",
    )
    return {normal(name): version for name, version in json.loads(found)}


@pytest.mark.containers
def test_the_image_is_for_nobody_in_particular_and_keeps_no_secret(image: dict[str, Any]) -> None:
    config = image["Config"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", config["User"])
    assert not config.get("Entrypoint")
    assert not config.get("Healthcheck")
    environment = dict(entry.split("=", 1) for entry in config["Env"])
    assert environment["PDNET_GIT_COMMIT"] == config["Labels"]["org.opencontainers.image.revision"]
    assert environment["PDNET_DVC_CACHE"] == "/dvc-cache"
    assert "PDNET_IMAGE" not in environment
    secret = re.compile(r"key|secret|token|passw|index|://", re.IGNORECASE)
    assert not [entry for entry in config["Env"] if secret.search(entry)]
    listing = ["docker", "history", "--no-trunc", "--format", "{{.CreatedBy}}", IMAGE]
    history = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
    assert not re.search(r"://[^ ]*@|passw|token", history, re.IGNORECASE)


@pytest.mark.containers
def test_the_packages_are_those_of_the_lock_without_the_tools(installed: dict[str, str]) -> None:
    locked = pins(ROOT / "requirements.lock")
    found = {name: version for name, version in installed.items() if name != "pdnet"}
    assert not {name: found[name] for name in found if found[name].partition("+")[0] not in locked.get(name, ())}
    assert {"torch", "kfp", "mlflow", "dvc", "great-expectations", "onnxruntime", "psycopg2-binary"} <= set(found)
    assert not {"pytest", "hypothesis", "mypy", "ruff", "import-linter", "kubernetes-validate", "pip", "uv"} & set(
        found
    )


@pytest.mark.containers
def test_the_image_holds_no_compiler_and_nothing_of_the_build(image: dict[str, Any]) -> None:
    tools = "gcc cc c++ g++ clang ld as make cmake nvcc git curl wget uv"
    assert confined("sh", "-c", f"for tool in {tools}; do command -v $tool; done; true") == ""
    listing = ["docker", "run", "--rm", "--user", "0", "--network", "none", IMAGE, "find", "/", "-xdev", "-type", "f"]
    listing += ["(", "-path", "/run/*", "-o", "-path", "/tmp/*", "-o", "-path", "/root/.*", "-o", "-name", "uv.toml"]
    listing += ["-o", "-name", "pip.conf", "-o", "-name", ".netrc", ")"]
    found = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split()
    assert set(found) <= {"/root/.bashrc", "/root/.profile"}


@pytest.mark.containers
def test_everything_is_compiled(image: dict[str, Any]) -> None:
    """Nowhere to keep bytecode: what is not compiled is compiled again by every task, which takes longer than most."""
    script = """
import importlib.util, pathlib, sysconfig
site = pathlib.Path(sysconfig.get_path("purelib"))
for package in ("pdnet", "torch", "mlflow", "kfp", "dvc", "great_expectations"):
    for path in (site / package).rglob("*.py"):
        if path.stat().st_size and not pathlib.Path(importlib.util.cache_from_source(str(path))).exists():
            print(path)
"""
    missing = confined("python3", "-c", script).splitlines()
    assert len(missing) < 20, missing[:20]  # templates, and files for another Python
    assert not [path for path in missing if "/pdnet/" in path.partition("site-packages")[2]]


@pytest.mark.containers
def test_the_libraries_load_without_a_name_a_home_or_a_network(image: dict[str, Any]) -> None:
    script = """
import getpass, torch, torchvision, mlflow, kfp, great_expectations, onnxruntime, dvc.repo, onnxscript, boto3
import sqlalchemy, pdnet.steps, pdnet.container
sqlalchemy.create_engine("postgresql+psycopg2://mlflow@postgres:5432/mlflow")
print(getpass.getuser(), torch.ones(2, 2).sum().item())
"""
    assert confined("python3", "-c", script).split()[-1] == "4.0"
    confined("sh", "-ec", "cd $(mktemp -d); pdnet --version; kfp --version; dvc --version; mlflow --version")


@pytest.mark.containers
def test_a_component_runs_as_kubeflow_starts_it(image: dict[str, Any]) -> None:
    component = """
import kfp
from kfp import dsl
from kfp.dsl import *
from typing import *
def step(rows: int, out: OutputPath(str)):
    import pdnet
    open(out, "w").write(f"{pdnet.__version__} {rows}")
"""
    script = """
folder=$(mktemp -d)
printf "%s" "$0" > "$folder/ephemeral_component.py"
_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main --component_module_path "$folder/ephemeral_component.py" "$@"
cat /tmp/out
"""
    executor_input = {
        "inputs": {"parameterValues": {"rows": 3}},
        "outputs": {"parameters": {"out": {"outputFile": "/tmp/out"}}, "outputFile": "/tmp/outputs.json"},
    }
    words = ("--executor_input", json.dumps(executor_input), "--function_to_execute", "step")
    assert re.search(r"\d+\.\d+\.\d+ 3$", confined("sh", "-ec", script, component, *words))


@pytest.mark.containers
def test_steps_run_on_a_read_only_root(image: dict[str, Any], tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] |= {"videos": "/tmp/data/mvps", "images": "/tmp/data/mvps/Stills"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    tmp_path.chmod(0o755)
    script = """
pdnet data synth --out data/mvps --preset tiny
pdnet validate --videos data/mvps --images data/mvps/Stills --out build/validation --params /params/params.yaml
cat build/validation/summary.json
"""
    printed = confined("sh", "-ec", script, options=("--volume", f"{tmp_path}:/params:ro"))
    assert json.loads(printed[printed.index("{") :])


@pytest.mark.containers
def test_the_bill_of_materials_lists_what_is_inside(installed: dict[str, str]) -> None:
    name, _, stage = IMAGE.rpartition(":")
    environment = os.environ | {"STAGES": stage, "IMAGE": name}
    subprocess.run([str(IMAGES / "build.sh"), "sbom"], check=True, env=environment, capture_output=True)
    bom = json.loads((ROOT / "build" / "images" / stage / "sbom.cdx.json").read_text())
    assert bom["bomFormat"] == "CycloneDX"
    parts = bom["components"]
    assert installed.items() <= {normal(part["name"]): part["version"] for part in parts}.items()
    debian = [part["name"] for part in parts if part.get("purl", "").startswith("pkg:deb")]
    assert sorted(debian) == sorted(confined("dpkg-query", "--show", "--showformat", "${Package}\\n").split())
