"""The promotion log: one JSON file an entry, never changed, in a run of MLflow that the registered model names."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pdnet.tracking.config import TrackingConfig
from pdnet.tracking.store import Store, experiment_id
from pdnet.tracking.versions import registered_model

#: The tag of the registered model that names the run with the log, and the folder in that run.
LOG_RUN, LOG_FOLDER = "promotions.run_id", "promotions"
#: The outcome of an entry that takes another one back.
DROPPED = "dropped"

_KEYS = ("outcome", "model", "version", "from", "to", "by", "at", "text")

logger = logging.getLogger(__name__)


def read_log(store: Store, model: str) -> list[dict[str, Any]]:
    """The entries of the log, oldest first: who, when, from which version to which, and why.

    Each has `outcome` (`promoted`, `refused`, `rolled back`, `dropped`), `model`, `version`, `from`, `to`, `by`, `at`,
    `pdnet`, `text`, and `file`, its own name; promotions and refusals also `policy`, `rows`, `figures`, `reasons`,
    `data`, `approval`; a dropped one `dropped`, the file of the entry that was not carried out.
    """
    entity = registered_model(store, model)
    run_id = None if entity is None else entity.tags.get(LOG_RUN)
    if run_id is None:
        return []
    if not store.client.list_artifacts(run_id, LOG_FOLDER):
        return []
    entries = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(store.client.download_artifacts(run_id, LOG_FOLDER, scratch))
        for path in sorted(folder.glob("*.json")):
            try:
                entry = json.loads(path.read_text(encoding="utf-8"))
                entries.append({key: entry[key] for key in _KEYS} | entry | {"file": path.name})
            except (ValueError, TypeError, KeyError):  # half written by a store that does so, or somebody else's file
                logger.warning("warning: the promotion log of %s: %s is no entry of it", model, path.name)
    return entries


def in_force(log: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries of what was carried out: without those that were dropped, and without the entries that say so."""
    dropped = {entry["dropped"] for entry in log if entry["outcome"] == DROPPED}
    return [entry for entry in log if entry["outcome"] != DROPPED and entry.get("file") not in dropped]


def line_of_champions(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """The champions that led to today's, oldest first: a rollback takes the last one away.

    Where an entry does not start from the champion of the one before, somebody moved the alias by hand, and the line
    starts anew.
    """
    line: list[str] = []
    for entry in in_force(log):
        if entry["outcome"] == "promoted":
            if entry["from"] is None or line[-1:] != [entry["from"]]:
                line = [entry["from"]] if entry["from"] else []
            line.append(entry["to"])
        elif entry["outcome"] == "rolled back":
            while line and line[-1] != entry["to"]:
                line.pop()
            line = line or [entry["to"]]
    return line


def log_run(store: Store, tracking: TrackingConfig) -> str:
    """The run that keeps the log; made where it is new. Only the holder of the lock asks for it."""
    client, model = store.client, tracking.model
    entity = registered_model(store, model)
    if entity is not None and (known := entity.tags.get(LOG_RUN)):
        return str(known)
    experiment = experiment_id(store, tracking.experiment)
    # An interrupted call may have made the run and not yet said so.
    found = client.search_runs([experiment], f"tags.`{LOG_FOLDER}.model` = '{model}'", order_by=["start_time ASC"])
    if found:
        run_id = str(found[0].info.run_id)
    else:
        tags = {
            f"{LOG_FOLDER}.model": model,
            "mlflow.source.name": "pdnet promote",
            "mlflow.note.content": f"The promotion log of {model}: one file for each promotion, refusal and rollback.",
        }
        run_id = str(client.create_run(experiment, run_name=f"promotions of {model}", tags=tags).info.run_id)
        client.set_terminated(run_id)
    client.set_registered_model_tag(model, LOG_RUN, run_id)
    return run_id


def write_entry(store: Store, run_id: str, file: str, entry: Mapping[str, Any]) -> None:
    """Write an entry into the run that `log_run` names; names of files sort by time."""
    store.client.log_text(run_id, json.dumps(entry, indent=1) + "\n", f"{LOG_FOLDER}/{file}")
