"""The store: shared by several, only read by some, and what is said when it fails."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from pathlib import Path

import pytest

from pdnet.errors import TrackingError
from pdnet.tracking.store import experiment_id, open_store

pytest.importorskip("mlflow")


def test_first_runs_at_once_share_the_experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with open_store() as store:
        for name in map(str, range(10)):
            gate = threading.Barrier(4)
            found: list[str] = []

            def ask(gate=gate, found=found, name=name):
                gate.wait()
                found.append(experiment_id(store, name))

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(found) == 4
            assert len(set(found)) == 1


def test_who_only_reads_makes_no_file_and_needs_no_right_to_write(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "archive" / "mlflow.db"
    path.parent.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    with pytest.raises(TrackingError, match=rf"No such file or directory: {path}"), open_store(write=False):
        pytest.fail("there is no store")
    assert not list(path.parent.iterdir())
    shutil.copyfile(empty_database, path)
    with sqlite3.connect(path) as holder:
        holder.execute("BEGIN IMMEDIATE")  # nobody else may write now, be it root
        with open_store(write=False) as store:
            assert not store.client.search_registered_models()


def test_a_locked_database_is_called_that(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copyfile(empty_database, path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}?timeout=0.1")
    with open_store() as store, sqlite3.connect(path) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(TrackingError, match="database is locked"), open_store():
            store.client.create_experiment("late")
