from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import yaml
from finished_run import (
    CLIPS,
    CONFIG,
    FRAMES_PER_CLIP,
    PARTS,
    PRETRAIN_STEPS,
    SIZE,
    TRAIN_STEPS,
    train_log,
    write_finished_run,
)
from PIL import Image

from pdnet.errors import DataError, ExportError, TrackingError
from pdnet.evaluation.overlays import FALSE_NEGATIVE_COLOUR, FALSE_POSITIVE_COLOUR, part_colours
from pdnet.files import file_digest
from pdnet.tracking import Registration, TrackingConfig, register_model
from pdnet.tracking.record import MAX_PARAM, MAX_POINTS, Record, flatten, label, read_record
from pdnet.tracking.samples import SAMPLES, write_samples
from pdnet.tracking.store import open_store, public_uri

HASH = "abcdef012345"
#: Seconds until a store that is not there is given up, on a machine under load; MLflow's own defaults take minutes.
PATIENCE = 60
START_UP = 120  # seconds, for a server on a machine that does other things too


def register(folders: dict[str, Path], **names: str) -> Registration:
    return register_model(config=CONFIG, config_hash=HASH, **folders, tracking=TrackingConfig(**names))


def record_of(folders: dict[str, Path]) -> Record:
    return read_record(CONFIG, HASH, **folders)


def uri_of(database: Path) -> str:
    return f"sqlite:///{database}"


@dataclasses.dataclass(frozen=True)
class Registered:
    root: Path
    folders: dict[str, Path]
    first: Registration
    second: Registration
    printed: str
    environment_kept: bool

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(uri_of(self.root / "mlflow.db"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_finished_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def registered(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """Two registrations in the default store of a new working folder, with all that they printed."""
    root = tmp_path_factory.mktemp("work")
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        patch.chdir(root)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        before = dict(os.environ)
        first, second = register(folders), register(folders)
        kept = dict(os.environ) == before
    return Registered(root, folders, first, second, printed.getvalue(), kept)


@pytest.fixture(scope="module")
def empty_database(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing registered (making the tables anew takes seconds)."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    shutil.copy(registered.root / "mlflow.db", path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for table in ("model_version_tags", "model_versions", "registered_model_aliases", "registered_models"):
            connection.execute(f"DELETE FROM {table}")
        connection.execute("UPDATE experiments SET name = 'of another test' WHERE name = 'pdnet'")
        connection.commit()
    return path


@pytest.fixture
def store(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the empty database, in use; the path of its file."""
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(empty_database, path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri_of(path))
    return path


# What is in the store afterwards


def test_the_registration_names_what_is_in_the_store(registered: Registered) -> None:
    registration = registered.first
    run = registered.client.get_run(registration.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.experiment_id == registration.experiment_id
    assert run.info.artifact_uri == registration.run_artifact_uri
    assert registered.client.get_experiment(registration.experiment_id).name == registration.experiment == "pdnet"
    assert registration.tracking_uri == "sqlite:///mlflow.db"
    assert registration.model_uri == "models:/pdnet/1"
    assert json.loads(json.dumps(dataclasses.asdict(registration)))["run_id"] == registration.run_id


def test_the_default_store_is_one_file_and_one_folder(registered: Registered) -> None:
    assert {path.name for path in registered.root.iterdir()} == {"mlflow.db", "mlartifacts"}
    artifacts = (registered.root / "mlartifacts").as_uri()
    assert registered.first.run_artifact_uri.startswith(artifacts)
    assert registered.first.model_artifact_uri.startswith(artifacts)


def test_nothing_is_printed_and_the_process_is_as_before(registered: Registered) -> None:
    assert registered.printed == ""
    assert registered.environment_kept


def test_parameters_are_the_flat_configuration_and_the_speed_measurement(registered: Registered) -> None:
    params = registered.client.get_run(registered.first.run_id).data.params
    assert params.pop("train.note") == "n" * (MAX_PARAM - 1) + "…"
    assert params == {
        "seed": "0",
        "device": "auto",
        "data.root": "data/mvps",
        "data.mean": "[0.5, 0.25, 0.125]",
        "data.images": "null",
        "model.parts": str(PARTS),
        "model.ipda": "true",
        "train.epochs": "2",
        "train.lr": "0.0001",
        "fps.device": "Example(R) CPU, 2 threads",
        "fps.precision": "fp32",
        "fps.size": str(SIZE),
    }


@pytest.mark.parametrize(
    ("name", "column", "phase"),
    [
        ("train/loss_video", "loss", "video"),
        ("train/loss_image", "loss", "image"),
        ("train/final", "final", "video"),
        ("train/final_image", "final", "image"),
        ("train/geometric_t", "geometric_t", "video"),
        ("lr/backbone", "lr_backbone", None),
        ("lr/rest", "lr_rest", None),
    ],
)
def test_curves_hold_every_step_of_their_phase(
    registered: Registered, name: str, column: str, phase: str | None
) -> None:
    log = train_log(TRAIN_STEPS)
    expected = log if phase is None else log[log["phase"] == phase]
    history = registered.client.get_metric_history(registered.first.run_id, name)
    assert [(point.step, point.value) for point in history] == list(
        zip(expected["step"], expected[column], strict=True)
    )


def test_curves_carry_the_time_of_training(registered: Registered) -> None:
    history = registered.client.get_metric_history(registered.first.run_id, "lr/rest")
    started = pd.Timestamp("2026-01-02T03:04:05+00:00").value // 10**6
    assert [point.timestamp - started for point in history] == [500 * (step + 1) for step in range(TRAIN_STEPS)]


def test_pretraining_has_its_own_curves(registered: Registered) -> None:
    for name in ("pretrain/loss", "lr/pretrain_encoder"):
        assert len(registered.client.get_metric_history(registered.first.run_id, name)) == PRETRAIN_STEPS


def test_columns_that_are_no_terms_and_terms_without_numbers_make_no_curve(registered: Registered) -> None:
    names = registered.client.get_run(registered.first.run_id).data.metrics
    assert {name for name in names if name.startswith(("train/", "pretrain/"))} == {
        "train/loss_video",
        "train/loss_image",
        "train/final",
        "train/final_image",
        "train/geometric_t",
        "train/geometric_ref",
        "pretrain/loss",
    }


def test_figures_of_the_finished_model(registered: Registered) -> None:
    metrics = registered.client.get_run(registered.first.run_id).data.metrics
    curves = ("train/", "pretrain/", "lr/")
    figures = {name: value for name, value in metrics.items() if not name.startswith(curves)}
    measures = {"j_mean": 0.85, "j_recall": 0.95, "j_decay": 0.02, "f_mean": 0.87, "f_recall": 0.97}  # F decay is null
    clips = {"talk_clip_1": 0.9, "talk_clip_2": 0.7, "dance_clip 3": 0.4}
    assert figures == pytest.approx(
        {"jf_mean": 0.86, **measures}
        | {"all_frames/jf_mean": 0.855, **{f"all_frames/{name}": value for name, value in measures.items()}}
        | {f"clip/{measure}/{clip}": value for clip, value in clips.items() for measure in ("jf", "j", "f")}
        | {"fps/network Example CPU 2 threads fp32": 31.5, "fps/end_to_end Example CPU 2 threads fp32": 21.5}
        | {"baseline/first mask carried": 0.6}
        | {"parts/share_1": 0.5, "parts/share_2": 0.3, "parts/share_3": 0.2, "parts/purity": 0.7, "parts/nmi": 0.3}
        | {"onnx/jf_mean": 0.859, "onnx/torch_jf_mean": 0.86, "onnx/mask_agreement": 1.0}
        | {"onnx/max_probability_difference": 1e-5, "onnx/mean_probability_difference": 1e-7}
        | {f"seconds/{step}": 12.5 for step in ("pretrain", "train", "evaluate", "export_onnx", "report")}
    )


def test_tags_tell_the_lineage(registered: Registered) -> None:
    tags = registered.client.get_run(registered.first.run_id).data.tags
    assert {key: value for key, value in tags.items() if not key.startswith("mlflow.")} == {
        "data.videos.md5": "1" * 32 + ".dir",
        "data.images.md5": "2" * 32 + ".dir",
        "data.dvc.md5": "3" * 32 + ".dir",
        "git.commit": "0123456789abcdef0123456789abcdef01234567",
        "git.dirty": "true",
        "config.hash": HASH,
        "pdnet.version": "0.1.0",
        "train.device": "Example(R) CPU, 2 threads",
        "train.precision": "fp32",
        "fps.device": "Example(R) CPU, 2 threads",
        "fps.precision": "fp32",
        "fps.size": str(SIZE),
        "onnx.sha256": file_digest(registered.folders["export"] / "pdnet.onnx"),
        "weights.sha256": file_digest(registered.folders["train"] / "model.safetensors"),
    }
    assert tags["mlflow.source.git.commit"] == tags["git.commit"]


def test_data_sets_are_inputs_with_their_digest_and_use(registered: Registered) -> None:
    inputs = registered.client.get_run(registered.first.run_id).inputs.dataset_inputs
    found = {item.dataset.name: item for item in inputs}
    assert set(found) == {"videos", "images"}
    assert found["videos"].dataset.digest == "1" * 32 + ".dir"
    assert json.loads(found["videos"].dataset.source) == {"uri": "data/mvps"}
    assert found["videos"].tags[0].value == "training, evaluation"


def test_files_are_kept(registered: Registered, tmp_path: Path) -> None:
    kept = Path(registered.client.download_artifacts(registered.first.run_id, "", str(tmp_path)))
    names = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()}
    samples = {name for name in names if name.startswith("samples/")}
    assert names - samples == {
        "params.yaml",
        "report/index.html",
        "evaluation/scores.json",
        "evaluation/frames.parquet",
        "evaluation/clips.parquet",
        "evaluation/baselines.parquet",
        "weights/model.safetensors",
        "export/parity.json",
        "lineage/pretrain/run.json",
        "lineage/train/run.json",
        "lineage/evaluate/run.json",
        "lineage/export_onnx/run.json",
        "lineage/report/run.json",
    }
    assert yaml.safe_load((kept / "params.yaml").read_text()) == CONFIG
    assert (kept / "weights/model.safetensors").read_bytes() == b"weights of train"
    assert len(samples) == SAMPLES
    for name in samples:
        Image.open(kept / name).load()


def test_every_call_makes_a_run_and_a_version_and_the_newest_is_the_candidate(registered: Registered) -> None:
    assert registered.first.run_id != registered.second.run_id
    assert (registered.first.version, registered.second.version) == ("1", "2")
    candidate = registered.client.get_model_version_by_alias("pdnet", "candidate")
    assert (str(candidate.version), candidate.run_id) == ("2", registered.second.run_id)


def test_versions_carry_the_facts_to_compare_them_by(registered: Registered) -> None:
    version = registered.client.get_model_version("pdnet", registered.first.version)
    assert version.run_id == registered.first.run_id
    assert version.tags == {
        "jf_mean": "0.8600",
        "fps": "31.5",
        "fps.device": "Example(R) CPU, 2 threads",
        "fps.precision": "fp32",
        "data.videos.md5": "1" * 32 + ".dir",
        "data.images.md5": "2" * 32 + ".dir",
        "git.commit": "0123456789abcdef0123456789abcdef01234567",
        "onnx.sha256": file_digest(registered.folders["export"] / "pdnet.onnx"),
    }


def test_the_model_carries_its_figures_on_the_evaluated_data_and_knows_its_version(registered: Registered) -> None:
    (model,) = registered.client.search_logged_models(
        [registered.first.experiment_id], filter_string=f"source_run_id = '{registered.first.run_id}'"
    )
    figures = {metric.key: metric for metric in model.metrics}
    assert figures["jf_mean"].value == 0.86
    assert (figures["jf_mean"].dataset_name, figures["jf_mean"].dataset_digest) == ("videos", "1" * 32 + ".dir")
    assert not {name for name in figures if name.startswith(("train/", "lr/", "pretrain/"))}
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "pdnet", "version": registered.first.version}]


@pytest.mark.parametrize("uri", ["models:/pdnet/1", "models:/pdnet@candidate"])
def test_the_registered_model_computes_what_the_file_computes(
    registered: Registered, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri_of(registered.root / "mlflow.db"))
    model = mlflow.pyfunc.load_model(uri)
    draw = np.random.default_rng([0, 1])
    pair = {name: draw.standard_normal((2, 3, SIZE, SIZE), dtype=np.float32) for name in ("target", "reference")}
    file = registered.folders["export"] / "pdnet.onnx"
    (expected,) = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, pair)
    predicted = model.predict(pair)["probability"]
    assert predicted.std() > 0.01
    np.testing.assert_array_equal(predicted, expected)
    with pytest.raises(mlflow.MlflowException, match="reference"):
        model.predict({"target": pair["target"]})


def test_signature_and_file_of_the_registered_model(registered: Registered, tmp_path: Path) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(registered.first.model_artifact_uri, dst_path=str(tmp_path)))
    assert file_digest(folder / "model.onnx") == file_digest(registered.folders["export"] / "pdnet.onnx")
    signature = mlflow.models.Model.load(str(folder)).signature
    shapes = {spec.name: (spec.shape, spec.type.name) for spec in [*signature.inputs, *signature.outputs]}
    assert shapes == {
        "target": ((-1, 3, SIZE, SIZE), "float32"),
        "reference": ((-1, 3, SIZE, SIZE), "float32"),
        "probability": ((-1, 1, SIZE, SIZE), "float32"),
    }
    packages = {line.partition("==")[0] for line in (folder / "requirements.txt").read_text().split()}
    assert packages == {"mlflow", "onnx", "onnxruntime"}


# Failure


def states(database: Path) -> tuple[list[str], int, int]:
    """Status of all runs of experiment `pdnet`, number of models and of versions."""
    client = mlflow.MlflowClient(uri_of(database))
    experiment = client.get_experiment_by_name("pdnet").experiment_id
    runs = [run.info.status for run in client.search_runs([experiment])]
    return runs, len(client.search_logged_models([experiment])), len(client.search_model_versions("name = 'pdnet'"))


def test_a_failed_upload_leaves_a_failed_run_and_nothing_else(store: Path, folders: dict[str, Path]) -> None:
    (store.parent / "mlartifacts").write_text("a file where the folder should be")
    with pytest.raises(TrackingError, match=r"mlflow\.db: Not a directory: .*mlartifacts"):
        register(folders)
    assert states(store) == (["FAILED"], 0, 0)


def test_a_failure_after_the_version_takes_it_back(store: Path, folders: dict[str, Path]) -> None:
    with contextlib.closing(sqlite3.connect(store)) as connection:
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON registered_model_aliases "
            "BEGIN SELECT RAISE(ABORT, 'aliases are refused'); END"
        )
    with pytest.raises(TrackingError, match="aliases are refused"):
        register(folders)
    assert states(store) == (["FAILED"], 0, 0)
    with contextlib.closing(sqlite3.connect(store)) as connection:
        connection.execute("DROP TRIGGER refuse")
    register(folders)
    runs, models, versions = states(store)
    assert (sorted(runs), models, versions) == (["FAILED", "FINISHED"], 1, 1)


@pytest.mark.parametrize(("name", "message"), [("pd/net", "pd/net"), ("", "empty|Missing|cannot|must")])
def test_a_refused_model_name_is_refused_before_there_is_a_run(
    store: Path, folders: dict[str, Path], name: str, message: str
) -> None:
    with pytest.raises(TrackingError, match=message) as caught:
        register(folders, model=name)
    assert "\n" not in str(caught.value)
    assert states(store) == ([], 0, 0)


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_server_that_is_not_there_is_said_within_seconds_without_secrets(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    port = closed_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        register(folders)
    assert time.monotonic() - started < PATIENCE
    assert str(caught.value).startswith(f"MLflow at http://127.0.0.1:{port}: Connection refused")
    assert "secret" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert os.environ["MLFLOW_TRACKING_URI"] == f"http://user:secret@127.0.0.1:{port}"


def test_a_server_that_never_answers_is_given_up(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(TrackingError, match="no answer in time") as caught:
            register(folders)
    assert "secret" not in str(caught.value)


@pytest.fixture
def server(empty_database: Path, tmp_path: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """An MLflow server that keeps the files itself; its port and process."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    port = closed_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *(
            "--backend-store-uri",
            uri_of(tmp_path / "mlflow.db"),
            "--artifacts-destination",
            str(tmp_path / "artifacts"),
        ),
    ]
    quick = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | quick, cwd=tmp_path, start_new_session=True
        )
    try:
        started = time.monotonic()
        while not _answers(port):
            given_up = process.poll() is not None or time.monotonic() - started > START_UP
            assert not given_up, (tmp_path / "server.log").read_text()
            time.sleep(0.1)
        yield port, process
    finally:
        _stop(process)


def _answers(port: int) -> bool:
    url = f"http://127.0.0.1:{port}/health"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError), direct.open(url, timeout=1) as response:
        return bool(response.status == 200)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_server_gets_the_same_record_and_its_password_is_told_to_nobody(
    server: tuple[int, subprocess.Popen[bytes]],
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    port, process = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    registration = register(folders)
    assert capfd.readouterr() == ("", "")
    assert "secret" not in json.dumps(dataclasses.asdict(registration))
    client = mlflow.MlflowClient()
    assert client.get_run(registration.run_id).info.status == "FINISHED"
    assert len(client.get_metric_history(registration.run_id, "lr/rest")) == TRAIN_STEPS
    assert len(client.list_artifacts(registration.run_id, "samples")) == SAMPLES
    assert client.get_model_version_by_alias("pdnet", "candidate").run_id == registration.run_id
    _stop(process)
    with pytest.raises(TrackingError, match="Connection refused"):
        register(folders)


def test_what_a_user_sets_for_mlflow_holds(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "6")
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    with open_store():
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "6"
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "6"
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("sqlite:///file:{root}/mlflow.db?mode=ro&uri=true", ": attempt to write a readonly database$"),
        ("sqlite:///{root}", "unable to open"),
        ("sqlite:///{root}/text.db", "not a database"),
        ("sqlite:///{root}/text.db/mlflow.db", r"text\.db$"),
        ("file://{root}/mlruns", "expected sqlite:///FILE"),
        ("./mlruns", "expected sqlite:///FILE"),
        ("postgres://user:secret@127.0.0.1:1/mlflow", "postgres"),
        ("nonsense", "nonsense.* expected sqlite:///FILE"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line(
    store: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, uri: str, reason: str
) -> None:
    (store.parent / "text.db").write_text("no database, only text" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(root=store.parent))
    started = time.monotonic()
    with pytest.raises(TrackingError, match=reason) as caught:
        register(folders)
    assert time.monotonic() - started < PATIENCE
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_relative_store_follows_the_working_folder(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(store, other / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    for folder in (store.parent, other):
        monkeypatch.chdir(folder)
        with open_store() as opened:
            opened.client.create_experiment(f"only in {folder.name}")
    names = {folder.name: _experiments(folder / "mlflow.db") for folder in (store.parent, other)}
    assert "only in other" in names["other"] - names["store"]
    assert "only in store" in names["store"] - names["other"]


def _experiments(database: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM experiments")}


def test_an_error_of_ours_passes_through_the_store(store: Path) -> None:
    with pytest.raises(DataError, match=r"^a clip is missing$"), open_store():
        raise DataError("a clip is missing")


@pytest.mark.parametrize(
    ("uri", "public"),
    [
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("https://ann:p%40ss@mlflow.example:5000/base", "https://mlflow.example:5000/base"),
        ("https://token@mlflow.example", "https://mlflow.example"),
        ("postgresql+psycopg2://ann:a:b@db/mlflow?sslpassword=x", "postgresql+psycopg2://db/mlflow"),
        ("http://mlflow.example/@me", "http://mlflow.example/@me"),
    ],
)
def test_public_uris_hold_no_secrets(uri: str, public: str) -> None:
    assert public_uri(uri) == public


# The record, without a store


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Path]:
    return write_finished_run(tmp_path / "own")


def test_long_curves_are_thinned_evenly_with_both_ends(tmp_path: Path) -> None:
    steps = 3 * MAX_POINTS + 1
    record = record_of(write_finished_run(tmp_path / "long", train_steps=steps))
    at = [point.step for point in record.curves if point.name == "lr/rest"]
    assert (len(at), at[0], at[-1]) == (MAX_POINTS, 0, steps - 1)
    assert set(np.diff(at)) <= {3, 4}
    video = [point.step for point in record.curves if point.name == "train/loss_video"]
    assert len(video) == MAX_POINTS
    assert all(step % 3 for step in video)


def test_a_model_without_parts_and_a_run_without_report_or_images(own: dict[str, Path]) -> None:
    scores = json.loads((own["evaluation"] / "scores.json").read_text())
    (own["evaluation"] / "scores.json").write_text(json.dumps(scores | {"parts": None}))
    facts = json.loads((own["train"] / "run.json").read_text())
    facts["data"]["images"] = None
    (own["train"] / "run.json").write_text(
        json.dumps(facts | {"git_commit": None, "git_dirty": None, "image": "sha256:1"})
    )
    record = record_of(own | {"report": None})  # type: ignore[dict-item]
    assert not [name for name in record.metrics if name.startswith("parts/")]
    assert "data.images.md5" not in record.tags
    assert "git.commit" not in record.tags
    assert record.tags["image"] == "sha256:1"
    assert "report" not in {folder for _, folder in record.files}
    assert {data.name: data.use for data in record.datasets} == {
        "videos": "training, evaluation",
        "images": "evaluation",
    }


@pytest.mark.parametrize(
    "missing",
    [
        "train/model.safetensors",
        "train/log.parquet",
        "train/run.json",
        "pretrain/log.parquet",
        "evaluation/scores.json",
        "evaluation/clips.parquet",
        "export/pdnet.onnx",
        "export/parity.json",
        "export/run.json",
        "report/index.html",
        "report/run.json",
    ],
)
def test_a_missing_file_is_named(own: dict[str, Path], missing: str) -> None:
    path = own["train"].parent / missing
    path.unlink()
    with pytest.raises(DataError) as caught:
        record_of(own)
    assert str(caught.value).startswith(f"{path}: no such file")


def test_an_onnx_file_that_is_not_the_compared_one_is_refused(own: dict[str, Path]) -> None:
    with (own["export"] / "pdnet.onnx").open("ab") as stream:
        stream.write(b"\x00")
    with pytest.raises(ExportError, match=r"pdnet\.onnx: not the file that was compared"):
        record_of(own)


def test_a_foreign_scores_file_is_refused(own: dict[str, Path]) -> None:
    path = own["evaluation"] / "scores.json"
    whole = json.loads(path.read_text())
    path.write_text('{"protocol": "mvps"}')
    with pytest.raises(DataError, match=r"scores\.json: lacks 'jf_mean'; found protocol"):
        record_of(own)
    path.write_text(json.dumps(whole | {"j": {"mean": 0.85}}))
    with pytest.raises(DataError, match=r"scores\.json: not what the evaluation writes \(KeyError\('recall'\)\)"):
        record_of(own)


@pytest.mark.parametrize("name", ["train/run.json", "export/run.json", "export/parity.json"])
def test_an_empty_object_is_refused(own: dict[str, Path], name: str) -> None:
    path = own["train"].parent / name
    path.write_text("{}")
    with pytest.raises(DataError, match=r"lacks '(started|sha256)'; found nothing") as caught:
        record_of(own)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_damaged_table_of_clips_is_refused(own: dict[str, Path]) -> None:
    (own["evaluation"] / "clips.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match=r"clips\.parquet: cannot be read as a Parquet table"):
        record_of(own)


def test_a_foreign_log_is_refused(own: dict[str, Path]) -> None:
    pd.DataFrame({"step": [1]}).to_parquet(own["train"] / "log.parquet")
    with pytest.raises(DataError, match=r"log\.parquet: lacks the columns phase, loss, seconds; found step"):
        record_of(own)
    (own["train"] / "log.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match=r"log\.parquet: cannot be read as a Parquet table"):
        record_of(own)


def test_flatten_and_label() -> None:
    nested: dict[str, Any] = {"a": {"b": {"c": 1}, "d": []}, "e": "text", "f": None, "g": False, "h": 0.5}
    assert flatten(nested) == {"a.b.c": "1", "a.d": "[]", "e": "text", "f": "null", "g": "false", "h": "0.5"}
    assert label("a/b, c(d)") == "a b c d"
    assert label("Zoë-1.5_x") == "Zoë-1.5_x"


def test_samples_run_from_worst_to_best_and_show_what_there_is(own: dict[str, Path], tmp_path: Path) -> None:
    shutil.rmtree(own["evaluation"] / "parts" / "talk" / "clip_1")
    (tmp_path / "out").mkdir()
    written = write_samples(own["evaluation"], tmp_path / "out")
    scores = [float(path.name.split("_")[1].removeprefix("jf")) for path in written]
    assert len(written) == SAMPLES
    assert scores == sorted(scores)
    panels = {path.name: (Image.open(path).width + 6) / (480 + 6) for path in written}
    assert all(Image.open(path).height == 360 for path in written)
    worst, best = written[0].name, written[-1].name
    assert worst == "1_jf0.390_dance_clip 3_00003.png"
    assert panels[worst] == 2  # its image is gone: prediction and parts
    assert panels[best] == 2  # no parts: image and prediction
    assert panels[next(name for name in panels if "clip_2" in name)] == 3


def shares(path: Path, panel: int, *colours: tuple[int, int, int]) -> list[float]:
    """Of each colour, the share of a panel's pixels whose hue is near to it."""
    pixels = np.asarray(Image.open(path), np.float64)[:, panel * 486 : panel * 486 + 480].reshape(-1, 3)
    pixels = pixels - pixels.mean(axis=1, keepdims=True)
    found = []
    for colour in colours:
        hue = np.array(colour) - np.mean(colour)
        length = np.linalg.norm(pixels, axis=1)
        near = pixels @ hue > 0.95 * np.linalg.norm(hue) * length
        found.append(float((near & (length > 30)).mean()))
    return found


def test_samples_show_frame_mistakes_and_parts(own: dict[str, Path], tmp_path: Path) -> None:
    path = next(path for path in write_samples(own["evaluation"], tmp_path) if "clip_2" in path.name)
    position = int(path.stem[-1])
    wrong = (FALSE_POSITIVE_COLOUR, FALSE_NEGATIVE_COLOUR)
    strip = 6 * 30 / (48 * 64)  # what the prediction, 6 pixels off, has too much and too little
    found = shares(path, 1, *wrong)
    assert found[0] == pytest.approx(strip, rel=0.4)
    assert found[1] == pytest.approx(strip, rel=0.4)
    assert 0.1 < shares(path, 2, part_colours(PARTS)[position % PARTS])[0] < 0.5  # its only part
    frames = pd.read_parquet(own["evaluation"] / "frames.parquet")
    frames.drop(columns="mask").to_parquet(own["evaluation"] / "frames.parquet")
    write_samples(own["evaluation"], tmp_path)
    assert shares(path, 1, *wrong) == [0, 0]  # nothing to compare with


def test_few_frames_are_all_shown(own: dict[str, Path], tmp_path: Path) -> None:
    frames = pd.read_parquet(own["evaluation"] / "frames.parquet")
    assert len(frames) == len(CLIPS) * FRAMES_PER_CLIP
    frames.head(2).drop(columns="image").to_parquet(own["evaluation"] / "frames.parquet")
    assert len(write_samples(own["evaluation"], tmp_path)) == 2


def test_a_missing_mask_is_named(own: dict[str, Path], tmp_path: Path) -> None:
    shutil.rmtree(own["evaluation"] / "masks")
    with pytest.raises(DataError, match=r"masks/.*\.png: no such file"):
        write_samples(own["evaluation"], tmp_path)


def test_a_mask_of_another_size_and_a_damaged_table_are_named(own: dict[str, Path], tmp_path: Path) -> None:
    path = own["evaluation"] / "masks" / "talk" / "clip_1" / "00000.png"
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(path)
    with pytest.raises(DataError) as caught:
        write_samples(own["evaluation"], tmp_path)
    assert str(caught.value) == f"{path}: the prediction is 9x8, expected 64x48, the size of its frame"
    (own["evaluation"] / "frames.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match=r"frames\.parquet: cannot be read as a Parquet table"):
        write_samples(own["evaluation"], tmp_path)
