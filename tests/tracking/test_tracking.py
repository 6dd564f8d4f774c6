from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import numpy as np
import pandas as pd
import pytest
from finished_run import (
    CLIPS,
    CONFIG,
    FRAMES_PER_CLIP,
    PARTS,
    PRETRAIN_STEPS,
    SIZE,
    STEPS,
    TRAIN_STEPS,
    train_log,
    write_finished_run,
    write_weights,
)
from PIL import Image
from restartable_server import Server, closed_port

from pdnet.errors import DataError, TrackingError
from pdnet.files import file_digest
from pdnet.overlays import FALSE_NEGATIVE_COLOUR, FALSE_POSITIVE_COLOUR, part_colours
from pdnet.tracking import Registration, TrackingConfig, register_model
from pdnet.tracking.card import MAX_CARD, model_card
from pdnet.tracking.record import MAX_PARAM, MAX_POINTS, Record, flatten, label, read_record
from pdnet.tracking.release import damage, read_release, write_release
from pdnet.tracking.samples import SAMPLES, write_samples
from pdnet.tracking.store import open_store, public_uri

HASH = "abcdef012345"
#: Seconds until a store that is not there is given up, on a machine under load; MLflow's own defaults take minutes.
PATIENCE = 60


def register(folders: dict[str, Path], **names: str) -> Registration:
    return register_model(config=CONFIG, config_hash=HASH, **folders, tracking=TrackingConfig(**names))


def record_of(folders: dict[str, Path]) -> Record:
    """The record, by way of the release."""
    gathered = {name: folder for name, folder in folders.items() if name != "report"}
    named = {STEPS[name]: folder for name, folder in folders.items()}
    with tempfile.TemporaryDirectory() as scratch:
        release = write_release(Path(scratch, "release"), config=CONFIG, config_hash=HASH, **gathered)
        return read_record(release, named)


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

    def release_sha256(self) -> str:
        """Digest of what lists the version's files."""
        place = urlsplit(self.first.model_artifact_uri).path
        return file_digest(Path(place, "artifacts/release/lineage.json"))

    def children(self) -> dict[str, Any]:
        """The runs of the steps by name."""
        below = f"tags.`mlflow.parentRunId` = '{self.first.run_id}'"
        found = self.client.search_runs([self.first.experiment_id], below)
        assert len({run.info.run_name for run in found}) == len(found)
        return {run.info.run_name: run for run in found}

    def history(self, step: str, name: str) -> list[Any]:
        """The points of a step's curve."""
        return self.client.get_metric_history(self.children()[step].info.run_id, name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_finished_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def registered(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """The same run registered twice in the default store of a new working folder, with all that was printed."""
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
    history = registered.history("train", name)
    assert [(point.step, point.value) for point in history] == list(
        zip(expected["step"], expected[column], strict=True)
    )


def test_curves_carry_the_time_of_training(registered: Registered) -> None:
    history = registered.history("train", "lr/rest")
    started = pd.Timestamp("2026-01-02T03:04:05+00:00").value // 10**6
    assert [point.timestamp - started for point in history] == [500 * (step + 1) for step in range(TRAIN_STEPS)]


def test_pretraining_has_its_own_curves(registered: Registered) -> None:
    for name in ("pretrain/loss", "lr/pretrain_encoder"):
        assert len(registered.history("pretrain", name)) == PRETRAIN_STEPS


def test_columns_that_are_no_terms_and_terms_without_numbers_make_no_curve(registered: Registered) -> None:
    assert {name for name in registered.children()["train"].data.metrics if not name.startswith("lr/")} == {
        *("train/loss_video", "train/loss_image", "train/final", "train/final_image"),
        *("train/geometric_t", "train/geometric_ref", "seconds", "gpu_hours"),
    }


def test_each_step_is_a_run_beneath_that_of_the_model(registered: Registered) -> None:
    children = registered.children()
    assert set(children) == set(STEPS.values())
    started = int(datetime.fromisoformat("2026-01-02T03:04:05+00:00").timestamp() * 1000)
    for step, run in children.items():
        assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", started, started + 12_500)
        assert run.data.tags["step"] == step
        assert (run.data.tags["host"], run.data.tags["git.dirty"]) == ("example-host", "true")
        assert run.data.metrics["seconds"] == 12.5
        assert [file.path for file in registered.client.list_artifacts(run.info.run_id)] == ["run.json"]
    assert children["train"].data.metrics["gpu_hours"] == pytest.approx(2 * 12.5 / 3600)
    assert children["train"].data.tags["processes"] == "2"
    assert children["evaluate"].data.metrics["jf_mean"] == 0.86
    assert children["export_onnx"].data.metrics["onnx/mask_agreement"] == 1.0


def test_figures_of_the_finished_model(registered: Registered) -> None:
    metrics = registered.client.get_run(registered.first.run_id).data.metrics
    measures = {"j_mean": 0.85, "j_recall": 0.95, "j_decay": 0.02, "f_mean": 0.87, "f_recall": 0.97}  # F decay is null
    clips = {"talk_clip_1": 0.9, "talk_clip_2": 0.7, "dance_clip 3": 0.4}
    intervals = {"jf_mean": (0.4, 0.9), "j_mean": (0.5, 0.9), "f_mean": (0.3, 0.8)}
    assert metrics == pytest.approx(
        {"jf_mean": 0.86, **measures}
        | {"all_frames/jf_mean": 0.855, **{f"all_frames/{name}": value for name, value in measures.items()}}
        | {f"clip/{measure}/{clip}": value for clip, value in clips.items() for measure in ("jf", "j", "f")}
        | {"fps/network Example CPU 2 threads fp32": 31.5, "fps/end_to_end Example CPU 2 threads fp32": 21.5}
        | {"baseline/first mask carried": 0.6}
        | {"parts/share_1": 0.5, "parts/share_2": 0.3, "parts/share_3": 0.2, "parts/purity": 0.7, "parts/nmi": 0.3}
        | {"onnx/jf_mean": 0.859, "onnx/torch_jf_mean": 0.86, "onnx/mask_agreement": 1.0}
        | {"onnx/max_probability_difference": 1e-5, "onnx/mean_probability_difference": 1e-7}
        | {f"interval/{name}_low": low for name, (low, _) in intervals.items()}
        | {f"interval/{name}_high": high for name, (_, high) in intervals.items()}
        | {"scenario/jf/dance": 0.4, "scenario/jf/talk": 0.8}
        | {f"seconds/{step}": 12.5 for step in STEPS.values()}
        | {"gpu_hours": 2 * 12.5 / 3600}
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
        "train.host": "example-host",
        "release.sha256": registered.release_sha256(),
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
    profile = json.loads(found["videos"].dataset.profile)
    assert profile == {"files": 24, "bytes": 2048, "md5": "1" * 32 + ".dir", "dvc_md5": "3" * 32 + ".dir"}
    assert found["videos"].tags[0].value == "training, evaluation"


def test_files_are_kept(registered: Registered, tmp_path: Path) -> None:
    kept = Path(registered.client.download_artifacts(registered.first.run_id, "", str(tmp_path)))
    names = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()}
    pictures = {name for name in names if name.endswith(".png")}
    assert names - pictures == {
        *("clips.json", "report/index.html", "validation/index.html", "validation/data_docs/clips.html"),
    }
    assert {name for name in pictures if name.startswith("figures/")} == {
        "figures/jf_by_scenario.png",
        "figures/losses.png",
    }
    assert len({name for name in pictures if name.startswith("samples/")}) == SAMPLES
    for name in pictures:
        Image.open(kept / name).load()
    table = json.loads((kept / "clips.json").read_text())
    assert [dict(zip(table["columns"], row, strict=True))["clip"] for row in table["data"]] == list(CLIPS)


def test_the_version_holds_the_release(registered: Registered, tmp_path: Path) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(registered.first.model_artifact_uri, dst_path=str(tmp_path)))
    release = read_release(folder / "artifacts" / "release")
    assert damage(release) == []
    assert set(release.facts["files"]) == {
        *("pdnet.onnx", "model.safetensors", "params.yaml", "parity.json"),
        *(f"evaluation/{name}" for name in ("scores.json", "frames.parquet", "clips.parquet", "baselines.parquet")),
    }
    assert release.config == CONFIG
    assert release.weights.read_bytes() == b"weights of train"
    assert file_digest(release.onnx) == file_digest(registered.folders["export"] / "pdnet.onnx")
    assert release.scores["jf_mean"] == 0.86
    assert len(release.frames()) == len(CLIPS) * FRAMES_PER_CLIP
    assert set(release.facts["steps"]) == set(STEPS.values()) - {"report"}
    assert release.step("pretrain")["weights_sha256"] == hashlib.sha256(b"weights of pretrain").hexdigest()
    (folder / "artifacts" / "release" / "model.safetensors").write_bytes(b"weights of others")
    (folder / "artifacts" / "release" / "more.txt").write_text("")
    release.onnx.unlink()
    others = hashlib.sha256(b"weights of others").hexdigest()
    recorded = hashlib.sha256(b"weights of train").hexdigest()
    assert damage(release) == [
        "more.txt: not in the list of files",
        f"model.safetensors: SHA-256 {others}, recorded {recorded}",
        "pdnet.onnx: missing",
    ]


def test_the_same_model_is_registered_once(registered: Registered, store: Path, tmp_path: Path) -> None:
    assert (registered.first.new, registered.second.new) == (True, False)
    assert dataclasses.replace(registered.second, new=True) == registered.first
    assert len(registered.client.search_model_versions("name = 'pdnet'")) == 1
    folders = write_finished_run(tmp_path / "other")
    first = register(folders)
    write_weights(folders, b"other weights")
    second = register(folders)
    assert (second.version, second.new) == ("2", True)
    client = mlflow.MlflowClient(uri_of(store))
    assert str(client.get_model_version_by_alias("pdnet", "candidate").version) == "2"
    write_weights(folders, b"weights of train")
    assert register(folders) == dataclasses.replace(first, new=False)
    assert str(client.get_model_version_by_alias("pdnet", "candidate").version) == "1"
    scores = json.loads((folders["evaluation"] / "scores.json").read_text())
    scores["speed"] |= {"device": "NVIDIA L4", "network_fps": 99.0}
    (folders["evaluation"] / "scores.json").write_text(json.dumps(scores))
    third = register(folders)  # the same weights, measured elsewhere
    assert (third.version, third.new) == ("3", True)
    assert client.get_model_version("pdnet", "3").tags["fps.device"] == "NVIDIA L4"


def test_versions_carry_the_facts_to_compare_them_by(registered: Registered) -> None:
    version = registered.client.get_model_version("pdnet", registered.first.version)
    assert version.run_id == registered.first.run_id
    assert len(version.tags.pop("identity")) == 16
    assert len(version.tags.pop("served.sha256")) == 64
    assert version.tags == {
        "jf_mean": "0.8600",
        "fps": "31.5",
        "fps.device": "Example(R) CPU, 2 threads",
        "fps.precision": "fp32",
        "data.videos.md5": "1" * 32 + ".dir",
        "data.images.md5": "2" * 32 + ".dir",
        "git.commit": "0123456789abcdef0123456789abcdef01234567",
        "config.hash": HASH,
        "onnx.sha256": file_digest(registered.folders["export"] / "pdnet.onnx"),
        "weights.sha256": file_digest(registered.folders["train"] / "model.safetensors"),
        "release.sha256": registered.release_sha256(),
    }


def test_the_model_card_is_the_versions_description(registered: Registered) -> None:
    card = registered.client.get_model_version("pdnet", registered.first.version).description
    assert card.startswith("J&F 86.0 (95 % interval over clips 40.0 to 90.0) on 3 validation clips, 12 frames")
    for told in (
        "| dance | 1 | 40.0 | 40.0 | 40.0 |",
        "- 6 of 12 frames (50.0 %) have a J&F below 70.",  # the 4 of dance, 2 of talk/clip_2
        "- Worst clips: dance/clip:3 (40.0), talk/clip_2 (70.0), talk/clip_1 (90.0).",
        f"- videos: `{'1' * 32}.dir`, 24 files, 0.0 MB",
        "- code `0123456789abcdef0123456789abcdef01234567`, with uncommitted changes; parameters `abcdef012345`",
        "Not stated (`tracking.licence` in the parameters).",
    ):
        assert told in card, told


def test_a_card_fits_its_column_whatever_the_names(own: dict[str, Path], tmp_path: Path) -> None:
    scores = json.loads((own["evaluation"] / "scores.json").read_text())
    scores["scenarios"] = [scores["scenarios"][0] | {"scenario": f"{n} " + "x" * 300} for n in range(200)]
    (own["evaluation"] / "scores.json").write_text(json.dumps(scores))
    gathered = {name: folder for name, folder in own.items() if name != "report"}
    release = write_release(tmp_path / "release", config=CONFIG, config_hash=HASH, **gathered)
    assert len(model_card(release, licence="CC BY 4.0")) <= MAX_CARD


def test_the_model_carries_its_figures_on_the_evaluated_data_and_knows_its_version(registered: Registered) -> None:
    (model,) = registered.client.search_logged_models(
        [registered.first.experiment_id], filter_string=f"source_run_id = '{registered.first.run_id}'"
    )
    figures = {metric.key: metric for metric in model.metrics}
    assert figures["jf_mean"].value == 0.86
    assert (figures["jf_mean"].dataset_name, figures["jf_mean"].dataset_digest) == ("videos", "1" * 32 + ".dir")
    assert not {name for name in figures if name.startswith(("train/", "lr/", "pretrain/"))}
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "pdnet", "version": registered.first.version}]


# Runs that the steps wrote into themselves, and runs of Kubeflow's plugin


def live_run(store: Path, folders: dict[str, Path], *, steps: int) -> str:
    """A run as the train step leaves it, with the first points of one curve, named in run.json."""
    client = mlflow.MlflowClient(uri_of(store))
    experiment = client.create_experiment("pdnet", artifact_location=(store.parent / "mlartifacts").as_uri())
    run_id = str(client.create_run(experiment, run_name="train", tags={"host": "beside"}).info.run_id)
    log = train_log(TRAIN_STEPS)
    for step in range(steps):
        client.log_metric(run_id, "lr/rest", log["lr_rest"][step], 1000 + step, step)
    client.set_terminated(run_id)
    path = folders["train"] / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mlflow_run_id": run_id}))
    return run_id


def test_a_run_that_the_step_wrote_into_is_adopted_and_completed(store: Path, own: dict[str, Path]) -> None:
    run_id = live_run(store, own, steps=4)
    first = register(own)
    client = mlflow.MlflowClient(uri_of(store))
    run = client.get_run(run_id)
    assert run.data.tags["mlflow.parentRunId"] == first.run_id
    told = {"step": "train", "device": "Example(R) CPU, 2 threads", "precision": "fp32", "git.dirty": "true"}
    assert run.data.tags.items() >= told.items()
    assert run.data.tags["host"] == "beside"  # what the run said itself stands
    history = client.get_metric_history(run_id, "lr/rest")
    assert [point.step for point in history] == list(range(TRAIN_STEPS))
    assert [point.timestamp for point in history][:4] == [1000, 1001, 1002, 1003]
    below = f"tags.`mlflow.parentRunId` = '{first.run_id}'"
    names = [run.info.run_name for run in client.search_runs([first.experiment_id], below)]
    assert sorted(names) == sorted(STEPS.values())
    # Another model of the same training, taken from a cache: the run stays where it is, the record is as complete.
    write_weights(own, b"other weights")
    second = register(own)
    assert second.new
    assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == first.run_id
    below = f"tags.`mlflow.parentRunId` = '{second.run_id}'"
    names = [run.info.run_name for run in client.search_runs([first.experiment_id], below)]
    assert sorted(names) == sorted(STEPS.values())


def test_a_failure_frees_the_adopted_run(store: Path, own: dict[str, Path]) -> None:
    run_id = live_run(store, own, steps=4)
    with contextlib.closing(sqlite3.connect(store)) as connection:
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON model_versions BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
    with pytest.raises(TrackingError, match="Model Version creation error"):
        register(own)
    client = mlflow.MlflowClient(uri_of(store))
    assert "mlflow.parentRunId" not in client.get_run(run_id).data.tags
    with contextlib.closing(sqlite3.connect(store)) as connection:
        connection.execute("DROP TRIGGER refuse")
    registered = register(own)
    assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == registered.run_id


def test_the_runs_of_kubeflows_plugin_are_joined(
    store: Path, own: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow.MlflowClient(uri_of(store))
    experiment = client.create_experiment("kubeflow", artifact_location=(store.parent / "mlartifacts").as_uri())
    pipeline = str(client.create_run(experiment, run_name="pdnet-x7k2p").info.run_id)
    tasks = {}
    for name, step in STEPS.items():
        parent = {"mlflow.parentRunId": pipeline}
        tasks[step] = str(client.create_run(experiment, run_name=step, tags=parent).info.run_id)
        path = own[name] / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"mlflow_run_id": tasks[step]}))
    task = str(client.create_run(experiment, run_name="register", tags={"mlflow.parentRunId": pipeline}).info.run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", task)
    registration = register(own)
    assert (registration.run_id, registration.experiment) == (pipeline, "kubeflow")
    assert len(client.search_runs([experiment])) == 2 + len(STEPS)
    run = client.get_run(pipeline)
    assert run.info.status == "RUNNING"  # the plugin ends it
    assert (run.data.metrics["jf_mean"], run.data.tags["config.hash"]) == (0.86, HASH)
    assert len(client.get_metric_history(tasks["train"], "lr/rest")) == TRAIN_STEPS


# Failure


def states(database: Path) -> tuple[list[str], int, int]:
    """Status of all runs of experiment `pdnet`, number of models and of versions."""
    client = mlflow.MlflowClient(uri_of(database))
    if (found := client.get_experiment_by_name("pdnet")) is None:
        return [], 0, len(client.search_model_versions("name = 'pdnet'"))
    experiment = found.experiment_id
    runs = [run.info.status for run in client.search_runs([experiment]) if "step" not in run.data.tags]
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
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def test_a_server_gets_the_same_record_and_its_password_is_told_to_nobody(
    server: Server, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{server.port}")
    registration = register(folders)
    assert capfd.readouterr() == ("", "")
    assert "secret" not in json.dumps(dataclasses.asdict(registration))
    client = mlflow.MlflowClient()
    assert client.get_run(registration.run_id).info.status == "FINISHED"
    below = f"tags.`mlflow.parentRunId` = '{registration.run_id}'"
    assert len(client.search_runs([registration.experiment_id], below)) == len(STEPS)
    assert len(client.list_artifacts(registration.run_id, "samples")) == SAMPLES
    assert client.get_model_version_by_alias("pdnet", "candidate").run_id == registration.run_id
    server.stop()
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
        ("http://mlflow.example:5000/@me", "http://mlflow.example:5000/@me"),
        ("http://ann:p@ss@mlflow.example:5000", "http://mlflow.example:5000"),
        ("http://ann:p/ss@mlflow.example:5000", "http://mlflow.example:5000"),
        ("sqlite:////a@b/mlflow.db", "sqlite:////a@b/mlflow.db"),
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
    (train,) = (step for step in record.steps if step.step == "train")
    at = [point.step for point in train.curves if point.name == "lr/rest"]
    assert (len(at), at[0], at[-1]) == (MAX_POINTS, 0, steps - 1)
    assert set(np.diff(at)) <= {3, 4}
    video = [point.step for point in train.curves if point.name == "train/loss_video"]
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
    record = record_of({name: folder for name, folder in own.items() if name != "report"})
    assert not [name for name in record.metrics if name.startswith("parts/")]
    assert "git.commit" not in record.tags
    assert record.tags["image"] == "sha256:1"
    assert "report" not in {step.step for step in record.steps}
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
        "validation/data.json",
        "report/run.json",
    ],
)
def test_a_missing_file_is_named(own: dict[str, Path], missing: str) -> None:
    path = own["train"].parent / missing
    path.unlink()
    with pytest.raises(DataError) as caught:
        record_of(own)
    assert str(caught.value).startswith(f"{path}: no such file")


def test_a_missing_report_is_named(store: Path, own: dict[str, Path]) -> None:
    (own["report"] / "index.html").unlink()
    with pytest.raises(DataError, match=r"report/index\.html: no such file"):
        register(own)
    assert mlflow.MlflowClient(uri_of(store)).get_experiment_by_name("pdnet") is None


@pytest.mark.parametrize("scored", ["0" * 64, None])
def test_an_evaluation_of_other_weights_is_refused(own: dict[str, Path], scored: str | None) -> None:
    facts = json.loads((own["evaluation"] / "run.json").read_text())
    (own["evaluation"] / "run.json").write_text(json.dumps(facts | {"model_sha256": scored}))
    by = rf"as scored \(.*evaluation/run\.json\) it was {scored or 'unknown'}$"
    with pytest.raises(DataError, match=rf"train/model\.safetensors: its SHA-256 is \w{{64}}; {by}"):
        record_of(own)


def test_an_onnx_file_that_is_not_the_compared_one_is_refused(own: dict[str, Path]) -> None:
    with (own["export"] / "pdnet.onnx").open("ab") as stream:
        stream.write(b"\x00")
    by = r"as compared \(.*export/parity\.json\) it was \w{64}$"
    with pytest.raises(DataError, match=rf"pdnet\.onnx: its SHA-256 is \w{{64}}; {by}"):
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
    with pytest.raises(DataError, match=r"lacks '(step|sha256)'; found nothing") as caught:
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
