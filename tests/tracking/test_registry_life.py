"""A model's life in the registry, by the commands: on the embedded store, and on a server with sign-in.

The server is that of infra/stack: PostgreSQL, artifacts on S3 that only the server has the key of.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import server
from real_run import write_real_run
from tiny_profile import write_params

POLICY = """min_jf: 1.0
max_probability_difference: 0.01
"""


class Team:
    """Somebody in a folder with data and results, and a store.

    Attributes:
        root: the folder.
        environment: of the commands.
    """

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root = root
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
        self.environment = kept | environment | {"OMP_NUM_THREADS": "1"}

    def pdnet(self, *words: str, code: int = 0) -> str:
        """Run a command; what it prints on both streams."""
        command = [sys.executable, "-m", "pdnet", *words]
        run = subprocess.run(command, cwd=self.root, env=self.environment, check=False, capture_output=True, text=True)
        assert run.returncode == code, run.stdout + run.stderr
        return run.stdout + run.stderr


@pytest.fixture(scope="module")
def results(portraits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and the folders of a finished run."""
    root = tmp_path_factory.mktemp("results")
    shutil.copytree(portraits, root / "data" / "mvps")
    write_params(root / "params.yaml")
    (root / "policy.yaml").write_text(POLICY)
    before = Path.cwd()
    os.chdir(root)
    try:
        folders = write_real_run(root / "build", Path("data/mvps"))
    finally:
        os.chdir(before)
    (root / "build" / "report").mkdir()
    (root / "build" / "report" / "index.html").write_text("<!doctype html><title>report</title>")
    shutil.copyfile(folders["export"] / "run.json", root / "build" / "report" / "run.json")
    return root


@pytest.fixture(params=[pytest.param("sqlite", marks=pytest.mark.slow), "server"])
def team(request: pytest.FixtureRequest, results: Path, tmp_path: Path, empty_database: Path) -> Iterator[Team]:
    root = tmp_path / "team"
    shutil.copytree(results, root)
    if request.param == "sqlite":
        shutil.copyfile(empty_database, root / "mlflow.db")
        yield Team(root, {})
        return
    with server() as running:
        account = {"MLFLOW_TRACKING_USERNAME": running.username, "MLFLOW_TRACKING_PASSWORD": running.password}
        yield Team(root, {"MLFLOW_TRACKING_URI": running.uri, **account})


def test_from_registration_to_verification(team: Team) -> None:
    folders = [
        f"--{name}=build/{name}" for name in ("validation", "pretrain", "train", "evaluation", "export", "report")
    ]
    said = team.pdnet("register", *folders, "--out=build/registration", "--policy=policy.yaml")
    assert "tiny version 1: registered in " in said
    registration: dict[str, Any] = json.loads((team.root / "build/registration/registration.json").read_text())
    assert registration["promotion"]["champion"] == "1", registration
    assert "the same model, is registered already" in team.pdnet("register", *folders, "--out=build/again")
    assert "tiny version 1 is the champion already" in team.pdnet("promote", "--policy=policy.yaml")
    assert "nothing to go back to" in team.pdnet("rollback", code=3)

    told = json.loads(team.pdnet("lineage", "tiny@champion", "--json"))
    assert told["version"]["number"] == "1"
    assert set(told["version"]["aliases"]) == {"candidate", "champion"}
    assert [entry["outcome"] for entry in told["promotions"]] == ["promoted"]
    assert "Promotions" in team.pdnet("lineage", "tiny@champion")
    assert "\ntiny/1 is what it claims\n" in team.pdnet("verify", "tiny@champion")
    team.pdnet("export", "triton", "tiny@champion", "--out=triton")
    assert (team.root / "triton" / "segmenter" / "config.pbtxt").is_file()

    secret = team.environment.get("MLFLOW_TRACKING_PASSWORD")
    for path in (team.root / "build").rglob("*.json"):
        assert secret is None or secret not in path.read_text()
