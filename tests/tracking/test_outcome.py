"""A pipeline run that failed is on record; one that succeeded leaves nothing more."""

from __future__ import annotations

import logging
import shutil
import socket
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from tiny_profile import tiny_config

from pdnet import steps
from pdnet.errors import TrackingError
from pdnet.tracking.outcome import MAX_NAME, MAX_TAG

EXPERIMENT = tiny_config().tracking.experiment
MESSAGE = "train: the loss is no longer a number at step 7\nTraceback ...\n  more"


@pytest.fixture
def client(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return mlflow.MlflowClient(uri)


def recorded(client: mlflow.MlflowClient) -> list[Run]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


@pytest.mark.parametrize(
    ("state", "status"), [("FAILED", "FAILED"), ("CANCELLED", "KILLED"), ("CANCELED", "KILLED"), ("ERROR", "FAILED")]
)
def test_a_run_that_did_not_succeed_is_on_record(
    client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture, state: str, status: str
) -> None:
    caplog.set_level(logging.INFO, "pdnet")
    steps.outcome(state=state, run="pdnet-x7k2p", message=MESSAGE, config=tiny_config())
    (run,) = recorded(client)
    assert (run.info.run_name, run.info.status) == ("failed pdnet-x7k2p", status)
    assert run.info.end_time is not None
    tags = run.data.tags
    assert {key: tags[key] for key in ("kubeflow.run", "outcome.state", "outcome.message")} == {
        "kubeflow.run": "pdnet-x7k2p",
        "outcome.state": state,
        "outcome.message": MESSAGE.splitlines()[0],
    }
    assert tags["mlflow.note.content"] == MESSAGE
    assert "mlflow.parentRunId" not in tags
    (line,) = (record.message for record in caplog.records if record.name.startswith("pdnet"))
    assert line == f"pdnet-x7k2p: {state}, recorded as run {run.info.run_id} of experiment {EXPERIMENT}"


@pytest.mark.parametrize("state", ["SUCCEEDED", "SKIPPED"])
def test_success_is_silent_and_needs_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, state: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    caplog.set_level(logging.INFO, "pdnet")
    steps.outcome(state=state, run="pdnet-x7k2p", message="", config=tiny_config())
    assert caplog.records == []
    assert list(tmp_path.iterdir()) == []


def test_whatever_kubeflow_says_fits(client: mlflow.MlflowClient) -> None:
    steps.outcome(state="FAILED", run="r" * 300, message="\n" + "m" * 20_000 + "\nend", config=tiny_config())
    steps.outcome(state="", run="empty", message=" \n", config=tiny_config())
    empty, long = sorted(recorded(client), key=lambda run: len(run.info.run_name))
    assert len(long.info.run_name) == MAX_NAME
    assert long.data.tags["kubeflow.run"] == "r" * 300
    assert long.data.tags["outcome.message"] == long.data.tags["mlflow.note.content"] == "m" * (MAX_TAG - 1) + "…"
    assert empty.info.status == "FAILED"
    assert (empty.data.tags["outcome.state"], empty.data.tags["outcome.message"]) == ("UNKNOWN", "no message")


def test_the_run_of_kubeflows_own_mlflow_plugin_is_its_parent(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = client.create_run(client.create_experiment("Kubeflow's"))
    monkeypatch.setenv("MLFLOW_RUN_ID", parent.info.run_id)
    steps.outcome(state="FAILED", run="pdnet-x7k2p", message=MESSAGE, config=tiny_config())
    (run,) = recorded(client)
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert client.get_run(parent.info.run_id).info.status == "RUNNING"  # Kubeflow ends it


def test_a_store_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    with pytest.raises(TrackingError, match=rf"^MLflow at http://127\.0\.0\.1:{port}: Connection refused") as caught:
        steps.outcome(state="FAILED", run="pdnet-x7k2p", message=MESSAGE, config=tiny_config())
    assert "\n" not in str(caught.value)
