"""A training on record while it runs: what a real server gets, and that nothing of it reaches the training."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("mlflow")
from mlflow import MlflowClient
from mlflow.entities import Run
from restartable_server import Server, closed_port

from pdnet.errors import TrackingError
from pdnet.steps.track_sync import track_sync
from pdnet.tracking import TrackingConfig, delivery, live
from pdnet.tracking.curves import curve_points
from pdnet.tracking.delivery import deliver_before, send_leftovers
from pdnet.tracking.journal import Header, Journal, JournalWriter
from pdnet.tracking.live import LiveRun, live_run
from pdnet.tracking.store import open_store

PATIENCE = 120.0
EXPERIMENT = "live"


class StoppedError(Exception):
    pass


def row(step: int) -> dict[str, Any]:
    """Of the log of pretraining; no two alike, and numbers that no decimal of a few digits holds."""
    return {
        "step": step, "epoch": 0, "phase": "pretrain", "loss": 1 / (step + 3), "lr_encoder": 0.1 / (step + 7),
        "seconds": 0.1 * step,
    }  # fmt: skip


def curves(steps: int) -> dict[str, list[tuple[int, float]]]:
    """What a run of `row` holds."""
    return {
        "pretrain/loss": [(step, row(step)["loss"]) for step in range(steps)],
        "lr/pretrain_encoder": [(step, row(step)["lr_encoder"]) for step in range(steps)],
    }


def recorded(training: str) -> Any:
    return live_run(
        "pretrain",
        {"config.hash": "c0ffee", "git.commit": None},
        TrackingConfig(experiment=EXPERIMENT),
        training=lambda: training,
        stops=(StoppedError,),
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for journals, and a short patience with servers."""
    monkeypatch.setenv("PDNET_MLFLOW_BUFFER", str(tmp_path / "buffer"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "buffer"


@pytest.fixture
def client(server: Server, buffer: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return MlflowClient(server.uri)


def runs_of(client: MlflowClient, training: str) -> list[Run]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], f"tags.`pdnet.training` = '{training}'"))


def newest(client: MlflowClient, training: str) -> dict[str, float]:
    """The newest value of each curve; none before there is a run."""
    return {name: value for run in runs_of(client, training) for name, value in run.data.metrics.items()}


def points(client: MlflowClient, run: Run) -> dict[str, list[tuple[int, float]]]:
    """The curves of a run as the server has them, without those of the machine."""
    names = [name for name in client.get_run(run.info.run_id).data.metrics if not name.startswith("system/")]
    history = {name: client.get_metric_history(run.info.run_id, name) for name in names}
    return {name: sorted((metric.step, metric.value) for metric in metrics) for name, metrics in history.items()}


def until(true: Callable[[], Any]) -> Any:
    """What is waited for."""
    started = time.monotonic()
    while not (result := true()):
        assert time.monotonic() - started < PATIENCE
        time.sleep(0.1)
    return result


def left(buffer: Path, training: str, *, store: str, run_id: str | None = None, began: int = 1) -> Path:
    """The journal of a training of three iterations that nobody has sent."""
    tags = {"pdnet.training": training}
    writer = JournalWriter(buffer, Header(training, "pretrain", EXPERIMENT, run_id, tags, 1785000000000 + began, store))
    for step in range(3):
        writer.write({"time": 1785000000000 + step, "step": step, "metrics": dict(curve_points(row(step)))})
    writer.write({"time": 1785000000003, "end": "FINISHED"})
    writer.close()
    return writer.path


def started(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that trains; it runs `script`, with `recorded` and `row` at hand."""
    head = f"import sys; sys.path[:0] = {sys.path!r}\nfrom test_live import *\n"
    command = [sys.executable, "-c", head + script, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_run_grows_while_it_trains_and_ends_with_it(client: MlflowClient, buffer: Path) -> None:
    with recorded("grows") as run:
        run.append(row(0))

        def seen() -> bool:
            run.append(row(grown[0]))
            grown[0] += 1
            found = runs_of(client, "grows")
            return bool(found) and {"pretrain/loss", "system/cpu_utilization_percentage"} <= set(found[0].data.metrics)

        grown = [1]
        until(seen)
        assert runs_of(client, "grows")[0].info.status == "RUNNING"
        assert run.finish("FINISHED") == run.run_id
    (found,) = runs_of(client, "grows")
    assert (found.info.run_id, found.info.run_name, found.info.status) == (run.run_id, "pretrain", "FINISHED")
    assert points(client, found) == curves(grown[0])
    about = {"step": "pretrain", "config.hash": "c0ffee", "host": os.uname().nodename}
    assert about.items() <= found.data.tags.items()
    assert "git.commit" not in found.data.tags
    system = {name for name in found.data.metrics if name.startswith("system/")}
    assert {"system/system_memory_usage_megabytes", "system/disk_available_megabytes"} <= system
    assert found.data.metrics["system/system_memory_usage_megabytes"] > 100
    assert list(buffer.iterdir()) == []


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (StoppedError, "KILLED")])
def test_a_run_ends_as_its_training_does(client: MlflowClient, buffer: Path, error: type, status: str) -> None:
    with pytest.raises(error), recorded(status) as run:
        run.append(row(0))
        raise error
    (found,) = runs_of(client, status)
    assert (found.info.status, points(client, found)) == (status, curves(1))
    assert list(buffer.iterdir()) == []


def test_a_run_that_somebody_else_made_is_joined_and_not_ended(
    client: MlflowClient, buffer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = client.create_run("0", run_name="a task")
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs.info.run_id)
    with recorded("joins") as run:
        run.append(row(0))
    assert run.run_id == theirs.info.run_id
    found = client.get_run(theirs.info.run_id)
    assert (found.info.status, found.info.run_name) == ("RUNNING", "a task")
    assert points(client, found) == curves(1)
    assert found.data.tags["config.hash"] == "c0ffee"
    assert runs_of(client, "joins") == []
    assert list(buffer.iterdir()) == []


def test_a_server_that_is_not_there_costs_one_line_and_no_data(
    tmp_path: Path, buffer: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("//", "//user:secret@"))
    caplog.clear()  # of what making the store told
    with caplog.at_level(logging.INFO, "pdnet"), recorded("away") as run:
        for step in range(6):
            run.append(row(step))
        until(lambda: run._listen() or caplog.records)
        assert run.wait_for_run() is None
        assert run.finish("FINISHED") is None
        assert run._recorder is None  # came to its end by itself, before it would have been killed
    (path,) = buffer.iterdir()
    (line,) = caplog.messages
    assert line.startswith(
        f"recording goes on in {path}, `pdnet track sync` sends it later: MLflow at http://127.0.0.1"
    )
    assert "secret" not in line + path.read_text()
    with pytest.raises(TrackingError, match="Connection refused"):
        track_sync()
    assert path.is_file()

    kept = shutil.copy(path, buffer.parent)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    client = MlflowClient(server.uri)
    server.start()
    try:
        said = track_sync(buffer=buffer)
        (found,) = runs_of(client, "away")
        where = f"{server.uri}/#/experiments/{found.info.experiment_id}/runs/{found.info.run_id}"
        assert said.endswith(f"FINISHED: {where}")
        assert (found.info.status, points(client, found)) == ("FINISHED", curves(6))
        assert not path.exists()
        assert track_sync() == f"{buffer}: nothing to send"

        shutil.copy(kept, path)  # what was sent is sent again
        assert ": pretrain, 0 values sent, FINISHED: " in track_sync()
        assert points(client, runs_of(client, "away")[0]) == curves(6)
    finally:
        server.stop()


def test_a_server_that_goes_away_and_comes_back_gets_all(
    tmp_path: Path, buffer: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(tmp_path)
    server.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        client, steps = MlflowClient(server.uri), [0]
        caplog.clear()  # of what making the store told
        with caplog.at_level(logging.INFO, "pdnet"), recorded("returns") as run:

            def until_told(lines: int) -> None:
                def told() -> bool:
                    run.append(row(steps[0]))
                    steps[0] += 1
                    return len(caplog.messages) >= lines

                until(told)

            until(lambda: run.append(row(0)) or runs_of(client, "returns"))
            steps[0] = 1
            server.stop()
            until_told(1)
            server.start()
            until_told(2)
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
        (found,) = runs_of(client, "returns")
        assert (found.info.status, set(points(client, found)["pretrain/loss"])) == (
            "FINISHED",
            set(curves(steps[0])["pretrain/loss"]),
        )
        assert list(buffer.iterdir()) == []
    finally:
        server.stop()


def test_a_training_that_is_killed_stands_as_killed_and_goes_on_in_the_same_run(
    client: MlflowClient, buffer: Path
) -> None:
    with started(
        "with recorded('killed') as run:\n"
        "    for step in range(6): run.append(row(step))\n"
        "    print('ready', flush=True); time.sleep(600)"
    ) as training:
        assert training.stdout is not None
        training.stdout.readline()
        until(lambda: runs_of(client, "killed"))
        training.kill()
    # The recorder sees to the rest.
    (found,) = until(lambda: [run for run in runs_of(client, "killed") if run.info.status == "KILLED"])
    until(lambda: not list(buffer.iterdir()))
    assert points(client, found) == curves(6)

    with recorded("killed") as run:  # from a checkpoint after four iterations
        run.append(row(4))
        until(lambda: runs_of(client, "killed")[0].info.status == "RUNNING")
        for step in range(5, 9):
            run.append(row(step))
    (found,) = runs_of(client, "killed")
    assert (found.info.status, found.info.run_id) == ("FINISHED", run.run_id)
    assert points(client, found) == curves(9)


def test_what_a_machine_that_died_left_is_sent_later_without_the_line_that_was_cut(
    client: MlflowClient, buffer: Path
) -> None:
    with started(
        "with recorded('died') as run:\n"
        "    for step in range(4): run.append(row(step))\n"
        "    run._recorder.kill(); print('ready', flush=True); time.sleep(600)"
    ) as training:
        assert training.stdout is not None
        training.stdout.readline()
        (path,) = buffer.iterdir()
        assert track_sync() == f"{path}: left alone: its training is running, or somebody else is sending it"
        assert path.is_file()
        training.kill()
    with path.open("a") as journal:
        journal.write('{"time": 1785000000000, "step": 4, "metrics": {"pretrain/lo')
    other = buffer / "notes.txt"
    other.write_text("none of ours\n")
    said = track_sync().splitlines()
    assert said[0].startswith(f"{other}: not a journal of a training")
    assert said[1].startswith(f"{path}: pretrain, 8 values sent, KILLED: ")
    (found,) = runs_of(client, "died")
    assert (found.info.status, points(client, found)) == ("KILLED", curves(4))
    assert list(buffer.iterdir()) == [other]


def test_what_a_killed_training_left_is_sent_before_it_goes_on(client: MlflowClient, buffer: Path) -> None:
    with started(
        "with recorded('goes on') as run:\n"
        "    for step in range(6): run.append(row(step))\n"
        "    run._recorder.kill(); print('ready', flush=True); time.sleep(600)"
    ) as training:
        assert training.stdout is not None
        training.stdout.readline()
        training.kill()
    assert len(list(buffer.iterdir())) == 1
    with recorded("goes on") as run:
        for step in range(4, 9):
            run.append(row(step))
    (found,) = runs_of(client, "goes on")
    assert (found.info.status, points(client, found)) == ("FINISHED", curves(9))
    assert list(buffer.iterdir()) == []


def test_what_somebody_else_is_sending_is_left_to_them(
    client: MlflowClient, buffer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = os.environ["MLFLOW_TRACKING_URI"]
    paths = [left(buffer, "shared", store=here, began=began) for began in (1, 2)]
    monkeypatch.setattr(delivery, "DRAIN_SECONDS", 0)
    newer = Journal(paths[1])
    with started(f"journal = Journal(Path({str(paths[0])!r}))\nprint(journal.lock(), flush=True); input()") as sender:
        assert sender.stdout is not None
        assert sender.stdout.readline() == "True\n"
        with open_store() as store:
            deliver_before(store, newer)
        assert paths[0].exists()
        assert runs_of(client, "shared") == []
        sender.communicate("done\n")
    with open_store() as store:
        deliver_before(store, newer)
    newer.close()
    assert list(buffer.iterdir()) == [paths[1]]
    (found,) = runs_of(client, "shared")
    assert points(client, found) == curves(3)


def test_a_journal_that_is_refused_holds_up_no_other(
    client: MlflowClient, buffer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = os.environ["MLFLOW_TRACKING_URI"]
    paths = [
        left(buffer, "1 of three", store=here),
        left(buffer, "2 of three", store=here, run_id="0" * 32),
        left(buffer, "2 of three", store=here, began=2),  # nor may this be sent before the one that was refused
        left(buffer, "3 of three", store=here),
    ]
    with pytest.raises(TrackingError) as error:
        track_sync()
    assert str(error.value) == f"{buffer}: 2 of 4 recordings could not be sent and stay there"
    assert sorted(buffer.iterdir()) == paths[1:3]
    assert [message.split(": ")[0] for message in caplog.messages] == [str(path) for path in paths]
    assert caplog.messages[1].startswith(f"{paths[1]}: not sent: MLflow at {here}: ")
    assert runs_of(client, "2 of three") == []
    for which in (1, 3):
        (found,) = runs_of(client, f"{which} of three")
        assert (found.info.status, points(client, found)) == ("FINISHED", curves(3))


def test_a_journal_of_another_folders_store_is_left_alone(
    buffer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = left(buffer, "of here", store=f"sqlite:///{tmp_path / 'here' / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path / "there")
    assert f"left alone: it is for MLflow at sqlite:///{tmp_path / 'here' / 'mlflow.db'}, this is" in track_sync()
    assert path.exists()
    monkeypatch.chdir(tmp_path / "here")
    assert "FINISHED" in track_sync()
    assert not path.exists()


def test_a_journal_of_another_store_is_left_alone(client: MlflowClient, buffer: Path) -> None:
    path = left(buffer, "elsewhere", store="http://elsewhere:5000")
    here = os.environ["MLFLOW_TRACKING_URI"]
    said = f"left alone: it is for MLflow at http://elsewhere:5000, this is {here}"
    assert track_sync() == f"{path}: {said}"
    assert path.exists()
    with recorded("elsewhere") as run:  # nor does a training send it that goes on with it at another store
        run.append(row(7))
    assert list(buffer.iterdir()) == [path]
    (found,) = runs_of(client, "elsewhere")
    assert points(client, found)["pretrain/loss"] == [(7, row(7)["loss"])]


def test_a_later_step_sends_what_is_left_and_is_not_held_up(
    client: MlflowClient, buffer: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    send_leftovers()  # no folder yet
    left(buffer, "left over", store=os.environ["MLFLOW_TRACKING_URI"])
    with started(
        "with recorded('still runs') as run:\n"
        "    run.append(row(0)); run._recorder.kill(); print('ready', flush=True); time.sleep(600)"
    ) as training:
        assert training.stdout is not None
        training.stdout.readline()
        assert len(list(buffer.iterdir())) == 2
        send_leftovers()
        training.kill()
    (running,) = buffer.iterdir()
    assert "still runs" in running.name
    (found,) = runs_of(client, "left over")
    assert (found.info.status, points(client, found)) == ("FINISHED", curves(3))
    assert not caplog.messages  # nobody has to do anything about a training that runs

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
    send_leftovers()
    (line,) = caplog.messages
    assert line.startswith(f"{buffer}: holds what MLflow did not get (files: 1); ")
    assert "Connection refused" in line
    assert running.exists()


def test_what_libraries_print_does_no_harm(
    client: MlflowClient,
    buffer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, threading, time\n"
        "print('a word\\n[1]\\n{\"unheard\": 1}', flush=True)\n"
        "def chatter():\n"
        "    while 'mlflow' not in sys.modules: time.sleep(0.01)\n"
        "    while True: print('chatter', end='', flush=True); time.sleep(0.001)\n"
        "threading.Thread(target=chatter, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with recorded("noise") as run:
        until(lambda: run.append(row(0)) or "system/cpu_utilization_percentage" in newest(client, "noise"))
        assert run.wait_for_run() is not None
    (found,) = runs_of(client, "noise")
    assert found.info.run_id == run.run_id
    assert caplog.messages == []
    assert list(buffer.iterdir()) == []


def test_a_full_disk_costs_one_line(client: MlflowClient, buffer: Path) -> None:
    with started(
        "import resource, logging; logging.basicConfig(stream=sys.stdout, format='%(message)s')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"  # as a full disk, for this process
        "with recorded('full') as run:\n"
        "    for step in range(1000): run.append(row(step))\n"
        "print('trained')"
    ) as training:
        said = training.communicate()[0].splitlines()
    assert training.returncode == 0
    assert len(said) == 2
    assert said[0].startswith("training goes on, but is not recorded: [Errno 28] No space left on device")
    assert said[1] == "trained"
    (found,) = runs_of(client, "full")
    written = len(points(client, found)["pretrain/loss"])
    assert points(client, found) == curves(written)
    assert 10 < written < 1000
    assert found.info.status == "FINISHED"


def test_a_folder_that_cannot_be_written_costs_one_line(
    client: MlflowClient, buffer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    buffer.write_text("a file where a folder should be")
    with recorded("nowhere") as run:
        for step in range(3):
            run.append(row(step))
    (line,) = caplog.messages
    assert line.startswith("training goes on, but is not recorded: [Errno 17] File exists")
    assert run.finish("FINISHED") is None


def test_a_recorder_that_cannot_start_costs_one_line_and_no_data(
    client: MlflowClient, buffer: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(buffer))  # no such file
        with recorded("unsent") as run:
            for step in range(3):
                run.append(row(step))
    (line,) = caplog.messages
    (path,) = buffer.iterdir()
    assert line.startswith(f"{path}: recording goes on there alone, `pdnet track sync` sends it later: ")
    assert "FINISHED" in track_sync()
    assert points(client, runs_of(client, "unsent")[0]) == curves(3)


def test_a_recorder_that_dies_costs_one_line_and_no_data(
    client: MlflowClient, buffer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with recorded("lonely") as run:
        run.append(row(0))
        assert run._recorder is not None
        os.kill(run._recorder.pid, signal.SIGKILL)
        until(lambda: run.append(row(1)) or caplog.messages)
    (path,) = buffer.iterdir()
    assert caplog.messages == [f"{path}: recording goes on there alone; `pdnet track sync` sends it later"]
    assert "FINISHED" in track_sync()
    assert set(points(client, runs_of(client, "lonely")[0])["pretrain/loss"]) == set(curves(2)["pretrain/loss"])


def test_the_store_of_the_working_folder_is_written_where_no_other_is_named(
    buffer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with recorded("embedded") as run:
        run.append(row(0))
        assert run.wait_for_run() is not None
        run.append(row(1))
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (found,) = runs_of(client, "embedded")
    assert (found.info.run_id, found.info.status) == (run.run_id, "FINISHED")
    assert points(client, found) == curves(2)
    assert not list(buffer.iterdir())


def test_nothing_is_recorded_where_the_configuration_says_so(client: MlflowClient, buffer: Path) -> None:
    tracking = TrackingConfig(experiment=EXPERIMENT, live=False)
    with live_run("pretrain", {}, tracking, training=lambda: "unwanted") as run:
        run.append(row(0))
        assert run.wait_for_run() is None
    assert not runs_of(client, "unwanted")
    assert not buffer.exists()
    assert track_sync() == f"{buffer}: nothing to send"


def test_without_mlflow_one_line_says_so(
    buffer: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr(live.importlib.util, "find_spec", lambda name: None)
    with recorded("bare") as run:
        run.append(row(0))
        run.append(row(1))
    assert caplog.messages == [
        "training goes on, but is not recorded: MLFLOW_TRACKING_URI is set, but mlflow is not installed"
    ]
    caplog.clear()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # then nobody has asked for it
    with recorded("bare") as run:
        run.append(row(0))
    assert not caplog.messages
    assert not buffer.exists()


def test_a_line_an_iteration_whatever_happens(buffer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
    run = LiveRun("pretrain", {}, TrackingConfig(experiment=EXPERIMENT), lambda: "lines")
    for step in range(3):
        run.append(row(step))
        (path,) = buffer.iterdir()
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        assert [entry["step"] for entry in entries[1:] if "pretrain/loss" in entry["metrics"]] == [*range(step + 1)]
    run.finish("FAILED")
    header = entries[0]
    assert (header["pdnet_journal"], header["training"], header["step"]) == (1, "lines", "pretrain")


def test_curves_are_named_by_phase_and_what_is_no_number_is_left_out() -> None:
    about = {"step": 3, "epoch": 0, "data_seconds": 0.1, "seconds": 1.0, "lr_rest": 0.5}
    video = about | {"phase": "video", "loss": 3.0, "final": 2.0, "area_t": float("inf")}
    assert dict(curve_points(video)) == {"train/loss_video": 3.0, "train/final": 2.0, "lr/rest": 0.5}
    image = about | {"phase": "image", "loss": 3.0, "final": 2.0, "area_t": float("nan")}
    assert dict(curve_points(image)) == {"train/loss_image": 3.0, "train/final_image": 2.0, "lr/rest": 0.5}
    frame = pd.DataFrame([row(0)])
    assert dict(curve_points(frame.iloc[0].to_dict())) == {
        "pretrain/loss": pytest.approx(1 / 3),
        "lr/pretrain_encoder": pytest.approx(0.1 / 7),
    }
