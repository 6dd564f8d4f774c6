"""Several pipeline runs share one store."""

from __future__ import annotations

import threading

import pytest

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
