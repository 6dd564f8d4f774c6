"""Real trainings that a real MLflow server gets while they run, and what becomes of it when either goes away."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("mlflow")
from mlflow import MlflowClient
from mlflow.entities import Run
from real_runs import Project
from restartable_server import Server
from tiny_profile import MODEL, tiny_config

from pdnet.config import load_config
from pdnet.files import read_json
from pdnet.model import ModelConfig, PDNet
from pdnet.steps import train
from pdnet.steps.run_record import RunRecord
from pdnet.steps.track_sync import track_sync
from pdnet.steps.training import learn
from pdnet.tracking import TrackingConfig
from pdnet.tracking.curves import curve_points

PATIENCE = 120.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("PDNET_MLFLOW_BUFFER", str(tmp_path / "buffer"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return MlflowClient(server.uri)


def runs(client: MlflowClient) -> list[Run]:
    """All of the experiment, the newest first."""
    experiment = client.get_experiment_by_name("tiny")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def until(true: Callable[[], Any]) -> None:
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < PATIENCE
        time.sleep(0.1)


def assert_holds_the_log(client: MlflowClient, run: Run, out: Path) -> None:
    """Every number of the log once, and no other curve."""
    rows = pd.read_parquet(out / "log.parquet").to_dict("records")
    expected: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in curve_points({str(key): value for key, value in row.items()}):
            expected.setdefault(name, []).append((row["step"], value))
    curves = [name for name in run.data.metrics if not name.startswith("system/")]
    history = {name: client.get_metric_history(run.info.run_id, name) for name in curves}
    found = {name: sorted((metric.step, metric.value) for metric in metrics) for name, metrics in history.items()}
    assert found == expected


@pytest.mark.slow
def test_a_server_that_goes_away_changes_no_weight_and_gets_the_rest_later(
    server: Server, client: MlflowClient, portraits: Path, tmp_path: Path
) -> None:
    project = Project(tmp_path, portraits, live=True, epochs=8, checkpoint_seconds=600)
    before = {run.info.run_id for run in runs(client)}

    def new() -> list[Run]:
        return [run for run in runs(client) if run.info.run_id not in before]

    with project.started("train", tmp_path / "out") as process:
        until(lambda: [path for path in (tmp_path / "buffer").glob("*") if "lr/rest" in path.read_text()])
        process.send_signal(signal.SIGSTOP)  # in the middle, until the server has some of it
        until(lambda: new() and "lr/rest" in new()[0].data.metrics)
        server.stop()
        process.send_signal(signal.SIGCONT)
        said = process.communicate()[1]
    try:
        assert process.returncode == 0
        (journal,) = (tmp_path / "buffer").iterdir()
        assert said.count(f"pdnet: recording goes on in {journal}, `pdnet track sync` sends it later: ") == 1
        assert "Traceback" not in said
    finally:
        server.start()
    (run,) = new()
    assert run.info.status == "RUNNING"
    assert "FINISHED" in track_sync()
    (run,) = new()
    assert run.info.status == "FINISHED"
    assert_holds_the_log(client, run, tmp_path / "out")
    assert read_json(tmp_path / "out" / "run.json")["mlflow_run_id"] == run.info.run_id
    assert not list((tmp_path / "buffer").iterdir())

    config = load_config(tmp_path / "params.yaml")
    config = dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, live=False))
    folders = {"videos": portraits, "images": portraits / "Stills", "init": tmp_path / "pretrain"}
    train(**folders, out=tmp_path / "untold", config=config)
    told, untold = (load_file(tmp_path / out / "model.safetensors") for out in ("out", "untold"))
    assert all(torch.equal(value, untold[name]) for name, value in told.items())
    assert len(new()) == 1
    facts = read_json(tmp_path / "untold" / "run.json")
    assert facts["mlflow_run_id"] is None
    assert (facts["processes"], facts["accelerators"]) == (1, 0)


@pytest.mark.slow
def test_two_processes_that_are_stopped_and_go_on_give_one_run(
    client: MlflowClient, portraits: Path, tmp_path: Path
) -> None:
    project = Project(tmp_path, portraits, live=True, epochs=4)
    before = {run.info.run_id for run in runs(client)}

    def new() -> list[Run]:
        return [run for run in runs(client) if run.info.run_id not in before]

    with project.started("train", tmp_path / "out", processes=2) as process:
        project.wait_for(process, 1)
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
    assert process.returncode != 0
    assert said.count("stopped by SIGTERM") == 1
    (run,) = new()
    assert run.info.status == "KILLED"
    assert not list((tmp_path / "buffer").iterdir())
    assert "goes on after" in project.run("train", tmp_path / "out", processes=2)
    (again,) = new()
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    assert_holds_the_log(client, again, tmp_path / "out")
    facts = read_json(tmp_path / "out" / "run.json")
    assert (facts["mlflow_run_id"], facts["processes"]) == (run.info.run_id, 2)
    assert facts["seconds"] >= round(pd.read_parquet(tmp_path / "out" / "log.parquet")["seconds"].iloc[-1], 1)


def loop_of(rows: list[dict[str, Any]], then: Callable[[], object] = lambda: None) -> Callable[..., pd.DataFrame]:
    """A training that has done those iterations."""

    def loop(on_iteration: Callable[[dict[str, Any]], None]) -> pd.DataFrame:
        for row in rows:
            on_iteration(row)
        then()
        return pd.DataFrame(rows)

    return loop


def learnt(out: Path, loop: Callable[..., pd.DataFrame], *, live: bool = True) -> None:
    learn(
        loop, network=PDNet(ModelConfig(**MODEL)), out=out, record=RunRecord("train", tiny_config()), facts={},
        device=torch.device("cpu"), dtype=torch.float32, checkpoints=None,
        tracking=TrackingConfig(experiment="tiny", live=live),
    )  # fmt: skip


def test_the_time_of_a_training_that_went_on_is_that_of_all_its_processes(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    row = {"epoch": 0, "phase": "video", "loss": 1.0}
    rows = [{**row, "step": 0, "seconds": 3600.0}, {**row, "step": 1, "seconds": 7200.06}]
    learnt(tmp_path / "out", loop_of(rows), live=False)
    facts = read_json(tmp_path / "out" / "run.json")
    assert facts["seconds"] == 7200.1
    ended = datetime.fromisoformat(facts["started"]) + timedelta(seconds=facts["seconds"])
    assert before - timedelta(seconds=1) <= ended <= datetime.now(UTC) + timedelta(seconds=1)
    learnt(tmp_path / "short", loop_of([{**row, "step": 0, "seconds": 0.0}], then=lambda: time.sleep(0.3)), live=False)
    assert read_json(tmp_path / "short" / "run.json")["seconds"] >= 0.3  # what is not an iteration counts too


def test_what_cannot_be_put_into_place_is_not_on_record_as_finished(client: MlflowClient, tmp_path: Path) -> None:
    before = {run.info.run_id for run in runs(client)}
    out = tmp_path / "out"
    rows = [{"step": 0, "epoch": 0, "phase": "video", "loss": 1.0, "seconds": 0.1}]
    with pytest.raises(OSError, match="out"):
        learnt(out, loop_of(rows, then=lambda: out.write_text("somebody else's")))
    (run,) = [run for run in runs(client) if run.info.run_id not in before]
    assert run.info.status == "FAILED"
    assert run.data.metrics["train/loss_video"] == 1.0
