"""The whole pipeline by `kfp run pipelines/pdnet.py --runner docker` in containers of the real image."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from project_copy import Project
from tiny_profile import SIZE

pytestmark = pytest.mark.containers
docker = pytest.importorskip("docker")
IMAGE = "pdnet:cpu"
COMMAND = ("kfp", "run", "pipelines/pdnet.py", "--runner", "docker")
#: long enough to be met while it trains
LONG: dict[str, Any] = {"train": {"epochs": 5, "size": SIZE, "checkpoint_seconds": 0}}


@pytest.fixture(scope="module")
def engine() -> Any:
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="module")
def commit(engine: Any) -> str:
    """The code in the image, as `pdnet` records it."""
    environment = dict(line.split("=", 1) for line in engine.images.get(IMAGE).attrs["Config"]["Env"])
    return environment["PDNET_GIT_COMMIT"]


@pytest.fixture(scope="module")
def project(portraits: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"), portraits, **LONG)


@pytest.fixture(scope="module")
def reference(project: Project, commit: str) -> dict[str, Any]:
    """What DVC makes of the same parameters and data."""
    project.run("dvc", "repro", "export_onnx", PDNET_GIT_COMMIT=commit)
    return json.loads((project.root / "build" / "export" / "parity.json").read_text())


def test_containers_make_the_same_model_as_dvc(project, reference, engine):
    text = project.run(*COMMAND)
    assert re.findall(r"^([\w-]+): done after", text, re.MULTILINE)[-1] == "pipeline"
    assert project.json("export-onnx/out/parity.json") == reference
    assert project.json("register/out/registration.json")["version"] == "1"
    assert project.json("train/out/run.json")["image"] == IMAGE
    assert [box for box in engine.containers.list(all=True) if IMAGE in box.image.tags] == []


def test_a_step_whose_container_is_removed_is_retried_and_goes_on(project, reference, engine):
    process = subprocess.Popen(
        COMMAND,
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    removed = False
    while process.poll() is None and not removed:
        for box in engine.containers.list():
            checkpoints = list(project.results.glob("workspace-*/checkpoints/train/*"))
            if "train" in box.attrs["Args"] and len(checkpoints) >= 2:
                box.remove(force=True)
                removed = True
        time.sleep(0.05)
    text, _ = process.communicate()
    assert removed, text
    assert process.returncode == 0, text
    assert "train: attempt 1/3 failed, trying again" in text
    assert re.search(r"checkpoints/train/\S+: goes on after \d+ iterations", text)
    assert project.json("export-onnx/out/parity.json") == reference


def test_a_missing_image_is_one_line(project):
    text = project.run(*COMMAND, "image=pdnet:nowhere", code=4)
    assert text == "kfp: error: there is no image pdnet:nowhere here; `make images` builds pdnet:cpu\n"


def test_no_docker_is_one_line(project):
    text = project.run(*COMMAND, code=4, DOCKER_HOST="unix:///nowhere.sock")
    assert text.startswith("kfp: error: Docker does not answer (")
    assert len(text.splitlines()) == 1
