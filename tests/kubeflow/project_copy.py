"""A copy of the project with small data, in which the real commands run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tiny_profile import write_params

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@example.org")


class Project:
    """A folder that looks like a fresh clone, with its data in DVC's cache."""

    def __init__(self, root: Path, portraits: Path, **params: Any) -> None:
        self.root = root
        self.results = root / "build" / "kubeflow"
        for name in ("dvc.yaml", ".gitignore", ".dvcignore", ".dvc/config", "benchmarks/results/ablation-ipda.json"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
        for name in ("pdnet", "components", "pipelines", "configs"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(portraits, root / "data" / "mvps")
        write_params(root / "params.yaml", **params)
        self.run("git", "init", "--quiet")
        self.run("dvc", "add", "--quiet", "data")
        self.run("git", "add", ".")
        self.run("git", *IDENTITY, "commit", "--quiet", "-m", "The project")

    def environment(self, **more: str) -> dict[str, str]:
        """What a user's shell has, and no more: no cluster, no store of another test."""
        dropped = ("PYTHONDONTWRITEBYTECODE", "KF_PIPELINES_ENDPOINT", "KFP_ENDPOINT", "MLFLOW_TRACKING_URI")
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        return kept | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "KUBECONFIG": str(self.root / "no-kubeconfig"),
            "DVC_SITE_CACHE_DIR": str(self.root / ".dvc" / "site"),
            "DVC_NO_ANALYTICS": "1",
            "OMP_NUM_THREADS": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            **more,
        }

    def run(self, *command: str, code: int = 0, **environment: str) -> str:
        """Run a command as a user would; what it prints on both streams."""
        run = subprocess.run(
            command,
            check=False,
            cwd=self.root,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert run.returncode == code, f"{' '.join(command)}\n{run.stdout}"
        return run.stdout

    def last_run(self) -> Path:
        """Folder of the newest run's artifacts."""
        return max(self.results.glob("pdnet-*"))

    def outputs(self, task: str) -> dict[str, Any]:
        """The artifacts of a task of the newest run as the orchestrator keeps them: name to metadata."""
        content = json.loads((self.last_run() / task / "executor_output.json").read_text())
        artifacts = content["artifacts"]
        return {name: found["artifacts"][0].get("metadata", {}) for name, found in artifacts.items()}

    def file(self, path: str) -> Path:
        """A file among the newest run's artifacts."""
        return self.last_run() / path

    def json(self, path: str) -> Any:
        """A JSON file among them."""
        return json.loads(self.file(path).read_text())
