"""What a result came from: `run.json`, handed from step to step."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pdnet import __version__
from pdnet.config import Config, config_hash
from pdnet.data.versions import tracked_version
from pdnet.errors import DataError
from pdnet.files import folder_digest, read_json, write_json


class RunRecord:
    """The record of one step, written as `run.json` when it is done.

    Args:
        step: name of the step.
        config: the resolved configuration.
        parents: folders of earlier steps, whose records are carried along.
        data: the data that this step reads itself, by name (`videos`, `images`): digested now. What it does not
            read is taken from its parents.

    Raises:
        DataError: a parent has no record, or a data folder is missing.
    """

    def __init__(
        self, step: str, config: Config, *, parents: tuple[Path, ...] = (), data: Mapping[str, Path] | None = None
    ) -> None:
        self._clock = time.perf_counter()
        commit, dirty = git_state()
        self.facts: dict[str, Any] = {
            "step": step,
            "pdnet": __version__,
            "git_commit": commit,
            "git_dirty": dirty,
            "config_hash": config_hash(config),
            "image": os.environ.get("PDNET_IMAGE"),
            "host": platform.node(),
            # Where the orchestrator has made a run for this step; else that of a training that was recorded live.
            "mlflow_run_id": os.environ.get("MLFLOW_RUN_ID") or None,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "parents": {record["step"]: record for record in map(read_record, parents)},
        }
        inherited = [parent.get("data") or {} for parent in self.facts["parents"].values()]
        self.facts["data"] = {name: facts for parent in inherited for name, facts in parent.items()}
        self.facts["data"] |= {name: data_facts(path) for name, path in (data or {}).items()}
        # What a step does not read itself may be gone by now.
        versions = {data_version(path) for path in (data or {}).values()} or {
            (parent.get("data_dvc"), parent.get("data_revision")) for parent in self.facts["parents"].values()
        }
        self.facts["data_dvc"], self.facts["data_revision"] = versions.pop() if len(versions) == 1 else (None, None)

    def model_facts(self, **facts: Any) -> dict[str, Any]:
        """What a model file carries of this record, with `facts`: what determines the weights, not when and where."""
        data = {name: entry["md5"] for name, entry in self.facts["data"].items()}
        return {"config_hash": self.facts["config_hash"], "data": data, **facts}

    @property
    def seconds(self) -> float:
        """Since the step began."""
        return round(time.perf_counter() - self._clock, 1)

    def write(self, folder: Path, **facts: Any) -> None:
        """Add what the step learnt and write `folder/run.json`."""
        self.facts |= {"seconds": self.seconds} | facts
        write_json(folder / "run.json", self.facts)


def data_facts(root: Path) -> dict[str, Any]:
    """A data folder as it is now: path, MD5 (as DVC computes it), files, bytes.

    Raises:
        DataError: there is no such folder.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    md5, files, size = folder_digest(root)
    return {"path": str(root), "md5": md5, "files": files, "bytes": size}


def read_record(folder: Path) -> dict[str, Any]:
    """The record in a step's folder.

    Raises:
        DataError: there is none.
    """
    record = read_json(folder / "run.json")
    if not isinstance(record, dict) or "step" not in record:
        raise DataError(f"{folder / 'run.json'}: not the record of a step; expected a folder that a step wrote")
    return record


def git_state() -> tuple[str | None, bool | None]:
    """Commit and dirtiness of the working folder's repository; None outside one or without git.

    A container has no repository: there PDNET_GIT_COMMIT says it, `<commit>` or `<commit>-dirty.<digest>`.
    """
    if given := os.environ.get("PDNET_GIT_COMMIT"):
        commit, dirty, _ = given.partition("-dirty")
        return commit, bool(dirty)
    try:
        commit = _git("rev-parse", "HEAD")
        # dvc.lock is rewritten after every stage of the very run that this records.
        watched = (":/", ":(top,exclude,glob)**/dvc.lock")
        return commit, bool(_git("status", "--porcelain", "--untracked-files=no", "--", *watched))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def data_version(path: Path) -> tuple[str | None, str | None]:
    """MD5 and git revision of the DVC-tracked folder that `path` is in, as the data.dvc beside it says; else None."""
    for folder in path.resolve().parents:
        pointer = folder / "data.dvc"
        if pointer.is_file():
            if not path.resolve().is_relative_to(folder / "data"):
                return None, None
            md5, revision = tracked_version(pointer)
            return md5, revision or _commit_of(pointer)
    return None, None


def _commit_of(path: Path) -> str | None:
    """The commit that holds a file as it is; None where it is changed, not tracked, or there is no repository."""
    try:
        changed = _git("-C", str(path.parent), "status", "--porcelain", "--", path.name)
        return None if changed else _git("-C", str(path.parent), "rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)  # noqa: S603, S607
    return run.stdout.strip()
