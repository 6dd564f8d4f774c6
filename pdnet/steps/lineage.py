"""What a result came from: `run.json`, handed from step to step."""

from __future__ import annotations

import os
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from pdnet import __version__
from pdnet.config import Config, config_hash
from pdnet.files import read_json, write_json


class RunRecord:
    """The record of one step, written as `run.json` when it is done.

    Args:
        step: name of the step.
        config: the resolved configuration.
        parents: folders of earlier steps, whose records are carried along.
    """

    def __init__(self, step: str, config: Config, *, parents: tuple[Path, ...] = ()) -> None:
        self._clock = time.perf_counter()
        commit, dirty = git_state()
        self.facts: dict[str, Any] = {
            "step": step,
            "pdnet": __version__,
            "git_commit": commit,
            "git_dirty": dirty,
            "config_hash": config_hash(config),
            "data_dvc": dvc_md5(Path("data.dvc")),
            "image": os.environ.get("PDNET_IMAGE"),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "parents": {record["step"]: record for record in (read_json(p / "run.json") for p in parents)},
        }
        data = next((parent["data"] for parent in self.facts["parents"].values() if "data" in parent), None)
        if data is not None:
            self.facts["data"] = data

    def write(self, folder: Path, **facts: Any) -> None:
        """Add what the step learnt and write `folder/run.json`."""
        self.facts |= facts
        self.facts["seconds"] = round(time.perf_counter() - self._clock, 1)
        write_json(folder / "run.json", self.facts)


def git_state() -> tuple[str | None, bool | None]:
    """Commit and dirtiness of the working folder's repository; None outside one or without git.

    A container has no repository: there the image's labels come in as PDNET_GIT_COMMIT.
    """
    if commit := os.environ.get("PDNET_GIT_COMMIT"):
        return commit, False
    try:
        commit = _git("rev-parse", "HEAD")
        return commit, bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def dvc_md5(path: Path) -> str | None:
    """The data version that a `.dvc` file names; None where there is no such file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return str(content["outs"][0]["md5"])
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError):
        return None


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)  # noqa: S603, S607
    return run.stdout.strip()
