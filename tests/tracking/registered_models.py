"""Models of a chosen quality in a real registry, for the tests of promotion: what `register` makes of a run."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from finished_run import write_finished_run
from mlflow.exceptions import MlflowException
from mlflow_server import server
from tiny_profile import tiny_config

from pdnet.config import Config, config_hash, to_mapping
from pdnet.files import file_digest, read_json, write_json
from pdnet.tracking import register_model
from pdnet.tracking.aliases import CHAMPION, PREVIOUS, PROMOTION, STATE
from pdnet.tracking.promotion_lock import lock_name
from pdnet.tracking.promotion_log import LOG_RUN

MODEL = "tiny"
DATA, OTHER = "1" * 32 + ".dir", "2" * 32 + ".dir"
DEVICE = "Example(R) CPU, 2 threads"
#: J&F in points; every clip is as hard for every model.
HARDNESS = {"talk/a": 4.0, "talk/b": 1.0, "talk/c": -2.0, "dance/d": -9.0, "dance/e": 3.0, "dance/f": 3.0}


def scores(jf: float, **clips: float) -> dict[str, float]:
    """J&F in points by clip: `jf` on average, but for the scenarios named, which have so much more or less."""
    spread = 1 + (jf - 80) / 20  # a lead is not the same on every clip
    return {clip: jf + spread * hard + clips.get(clip.partition("/")[0], 0.0) for clip, hard in HARDNESS.items()}


def write_run(root: Path, clips: Mapping[str, float], *, data: str = DATA, name: str = "") -> dict[str, Path]:
    """The folders of a finished run whose evaluation found `clips`; another `name` makes other weights."""
    folders = write_finished_run(root)
    train, evaluation = folders["train"], folders["evaluation"]
    (train / "model.safetensors").write_text(f"weights of {name or root.name}")
    entry = {"path": "data/mvps", "md5": data, "files": 24, "bytes": 2048}
    for folder, key in ((evaluation, "run.json"), (folders["validation"], "data.json")):
        change(folder / key, data=read_json(folder / key)["data"] | {"videos": entry})
    change(evaluation / "run.json", model_sha256=file_digest(train / "model.safetensors"))
    frames = pd.read_parquet(evaluation / "frames.parquet")
    like, tables = frames[frames["clip"] == "talk/clip_1"], []
    for clip, points in clips.items():
        shutil.copytree(evaluation / "masks" / "talk" / "clip_1", evaluation / "masks" / clip)
        tables.append(like.assign(clip=clip, scenario=clip.partition("/")[0], j=points / 100, f=points / 100))
    pd.concat(tables).to_parquet(evaluation / "frames.parquet")
    figures = ("jf_mean", "j_mean", "j_recall", "j_decay", "f_mean", "f_recall", "f_decay")
    table = [
        {"clip": clip, "scenario": clip.partition("/")[0], "frames": 2} | dict.fromkeys(figures, points / 100)
        for clip, points in clips.items()
    ]
    pd.DataFrame(table).to_parquet(evaluation / "clips.parquet")
    mean = sum(clips.values()) / len(clips) / 100
    change(evaluation / "scores.json", jf_mean=mean)
    change(folders["export"] / "parity.json", torch={"jf_mean": mean}, onnx={"jf_mean": mean})
    return folders


def change(path: Path, **facts: Any) -> None:
    """Put other values into a JSON file."""
    write_json(path, read_json(path) | facts)


def add_model(folders: Mapping[str, Path], config: Config | None = None, **more: Any) -> str:
    """Register a run; the number of its version."""
    config = config or tiny_config()
    return register_model(
        config=to_mapping(config), config_hash=config_hash(config), **folders, **more, tracking=config.tracking
    ).version


@contextlib.contextmanager
def new_store(kind: str, root: Path, empty_database: Path) -> Iterator[str]:
    """The URI of an empty store, which the environment names while the block lasts.

    Args:
        kind: `sqlite`, or `server`: the one of infra/stack, with PostgreSQL and S3.
        root: folder for the embedded one.
        empty_database: what that is copied from.
    """
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        uri = f"sqlite:///{root / 'mlflow.db'}"
        if kind == "server":
            running = stack.enter_context(server())
            uri = running.uri
            patch.setenv("MLFLOW_TRACKING_USERNAME", running.username)
            patch.setenv("MLFLOW_TRACKING_PASSWORD", running.password)
        else:
            shutil.copy(empty_database, root / "mlflow.db")
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


def reset(client: mlflow.MlflowClient) -> None:
    """As if nobody had ever promoted anything: no alias but the candidate's, no tag, no log, no lock."""
    with contextlib.suppress(MlflowException):
        client.delete_registered_model(lock_name(MODEL))
    registered = client.get_registered_model(MODEL)
    for alias in registered.aliases.keys() & {CHAMPION, PREVIOUS}:
        client.delete_registered_model_alias(MODEL, alias)
    if STATE in registered.tags:
        client.delete_registered_model_tag(MODEL, STATE)
    if run_id := registered.tags.get(LOG_RUN):
        client.delete_registered_model_tag(MODEL, LOG_RUN)
        client.delete_run(run_id)
    for version in client.search_model_versions(f"name = '{MODEL}'"):
        for tag in version.tags.keys() & {PROMOTION, "approval"}:
            client.delete_model_version_tag(MODEL, version.version, tag)


def aliases(client: mlflow.MlflowClient) -> dict[str, str]:
    """Champion and previous."""
    found = client.get_registered_model(MODEL).aliases
    return {alias: str(version) for alias, version in found.items() if alias in (CHAMPION, PREVIOUS)}


def lock_is_there(client: mlflow.MlflowClient) -> bool:
    """Whether somebody moves the aliases, or was interrupted in it."""
    with contextlib.suppress(MlflowException):
        client.get_registered_model(lock_name(MODEL))
        return True
    return False
