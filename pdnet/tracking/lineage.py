"""Where a registered version came from and what became of it: from the registry alone, without the model's files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pdnet.errors import DataError, TrackingError
from pdnet.files import file_digest
from pdnet.tracking.promotion_log import read_log
from pdnet.tracking.release import ENGINE_PARITY, LINEAGE, RELEASE, Release, built, exported, read_release
from pdnet.tracking.store import Store
from pdnet.tracking.versions import Version, download

#: What a release says of itself in a few kilobytes; weights and graphs are a thousand times as large.
SMALL_FILES = ("params.yaml", "parity.json", "evaluation/scores.json")

_STEP = ("started", "seconds", "host", "device", "precision", "processes", "accelerators", "image", "config_hash")
_AGREEMENT = ("max_probability_difference", "mean_probability_difference", "mask_agreement")


def read_lineage(store: Store, version: Version, *, paper: Mapping[str, Any]) -> dict[str, Any]:
    """Gather all that is known of a version.

    Args:
        store: the registry.
        version: which one.
        paper: the configuration to compare with, as plain values.

    Returns:
        What `pdnet.steps.show_lineage` documents.

    Raises:
        TrackingError: the version was registered by other means than pdnet, or its files cannot be had.
        DataError: a file is not the one that was registered.
    """
    with tempfile.TemporaryDirectory() as scratch:
        release = download_facts(store, version, Path(scratch))
        facts, config = release.facts, release.config
        scores, exports = release.scores, list(_exports(release))
    return {
        "version": {
            "name": version.name,
            "model": version.model,
            "number": version.version,
            "aliases": list(version.aliases),
            "created": version.created.isoformat(),
            "page": _page(store, f"models/{version.model}/versions/{version.version}"),
            "tags": version.tags,
        },
        "run": _run(store, version.run_id),
        "pdnet": facts["pdnet"],
        "git": facts["git"],
        "image": facts["image"],
        "config": {"hash": facts["config_hash"], "differs": differences(paper, config)},
        "data": {
            **facts["data"],
            "dvc": {"md5": facts["data_dvc"], "revision": data_revision(facts)},
            "commands": data_commands(facts),
        },
        "parents": {
            "backbone": (config.get("pretrain") or {}).get("weights"),
            "pretrain": release.step("pretrain").get("weights_sha256"),
            "train": facts["files"]["model.safetensors"]["sha256"],
        },
        "steps": [
            {"step": step, **{key: record.get(key) for key in _STEP}, "git_commit": record.get("git_commit")}
            for step, record in facts["steps"].items()
        ],
        "exports": exports,
        "evaluation": scores,
        "promotions": promotions(store, version),
    }


def download_facts(store: Store, version: Version, out: Path) -> Release:
    """Fetch what a release says of itself: lineage.json and `SMALL_FILES`; nothing else of it is in `out`.

    Args:
        store: the registry.
        version: which one.
        out: an empty folder.

    Raises:
        TrackingError: the version was registered by other means than pdnet, or its files cannot be had.
        DataError: a file is not the one that was registered.
    """
    expected = version.tags.get("release.sha256")
    if expected is None:
        raise TrackingError(
            f"{version.name}: registered by other means than `pdnet register`: it has no tag release.sha256, "
            "so nothing is known of its origin"
        )
    _fetch(store, version, LINEAGE, out, expected)
    release = read_release(out)
    for name in (*SMALL_FILES, ENGINE_PARITY):
        if name in release.facts["files"]:
            _fetch(store, version, name, out, release.facts["files"][name]["sha256"])
    return release


def data_revision(facts: Mapping[str, Any]) -> str | None:
    """The git revision whose data.dvc tracks the data of a release; None where none is known.

    It was noted when the data were read: the commit that holds just that data.dvc.
    """
    revision: str | None = facts["data_revision"]
    return revision if facts["data_dvc"] else None


def data_commands(facts: Mapping[str, Any]) -> list[str]:
    """The commands that bring the data version of a release; none where DVC does not track it.

    Without a git revision it is had by its MD5: `URL` stands for the DVC remote, `DIR` for a new folder.
    """
    if facts["data_dvc"] is None:
        return []
    if revision := data_revision(facts):
        return [f"git checkout {revision} -- data.dvc", "dvc pull data.dvc"]
    return [f"pdnet data pull --md5 {facts['data_dvc']} --remote URL --out DIR"]


def differences(paper: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[dict[str, Any]]:
    """The values in which two configurations differ, by dotted key: `{"key": "data.size", "paper": 480, "here": 193}`.

    A key that only one of them has lacks the other's entry.
    """
    found: list[dict[str, Any]] = []
    for key in dict.fromkeys([*paper, *here]):
        sides = {name: config[key] for name, config in (("paper", paper), ("here", here)) if key in config}
        if all(isinstance(value, Mapping) for value in sides.values()):
            found += differences(sides.get("paper", {}), sides.get("here", {}), f"{prefix}{key}.")
        elif len(sides) == 1 or sides["paper"] != sides["here"]:
            found.append({"key": f"{prefix}{key}", **sides})
    return found


def promotions(store: Store, version: Version) -> list[dict[str, Any]]:
    """The entries of the promotion log about a version, oldest first.

    They are those that judge it, roll it back, or move the champion to it or away from it.
    """
    return [
        entry
        for entry in read_log(store, version.model)
        if version.version == entry["version"]
        or (entry["from"] != entry["to"] and version.version in (entry["from"], entry["to"]))
    ]


def _fetch(store: Store, version: Version, name: str, out: Path, expected: str) -> None:
    """Fetch one file of a release to the same place below `out`."""
    download(store, version, out / name, f"artifacts/{RELEASE}/{name}")
    if (found := file_digest(out / name)) != expected:
        raise DataError(
            f"{version.name}: {name} is not the file that was registered: SHA-256 {found}, recorded {expected}; "
            f"`pdnet verify {version.name}` tells the rest"
        )


def _exports(release: Release) -> Iterator[dict[str, Any]]:
    """The exported files, each with its digest and how closely it agrees with the network."""
    files = release.facts["files"]
    for each in exported(release.parity):
        agreement = _agreement(each.figures, each.figures["onnx"]["jf_mean"])
        for name in each.files:
            yield {"file": name, **files[name], "agreement": agreement}
    if (engine := release.engine) is not None:
        for each in built(engine):
            agreement = _agreement(each.figures, each.figures["tensorrt"]["jf_mean"])
            for name in each.files:
                yield {"file": name, **files[name], "agreement": agreement | {"device": engine.get("device")}}


def _agreement(figures: Mapping[str, Any], jf_mean: float) -> dict[str, Any]:
    return {key: figures.get(key) for key in _AGREEMENT} | {"jf_mean": jf_mean}


def _run(store: Store, run_id: str | None) -> dict[str, Any] | None:
    """The MLflow run of a model; of one that was removed for good, its id alone."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        info = store.client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {"id": run_id, "name": None, "status": None, "page": None}
    page = _page(store, f"experiments/{info.experiment_id}/runs/{run_id}")
    return {"id": run_id, "name": info.run_name, "status": info.status, "page": page}


def _page(store: Store, path: str) -> str:
    """Where MLflow shows it; of a store that is no server, beneath the address of whatever `mlflow ui` is started."""
    return f"{store.uri.rstrip('/')}/#/{path}" if store.uri.startswith("http") else f"/#/{path}"
