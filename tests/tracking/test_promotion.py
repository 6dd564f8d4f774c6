"""Promotion on a real MLflow store: who becomes the champion, in which order, and what the register step leaves."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import shutil
import sqlite3
from pathlib import Path

import mlflow
import pytest
import yaml
from finished_run import write_finished_run
from tiny_profile import tiny_config

from pdnet import steps
from pdnet.config import load_yaml
from pdnet.errors import ConfigError, DataError, ExportError, TrackingError
from pdnet.files import file_digest
from pdnet.tracking import PromotionPolicy, Verdict, promote
from pdnet.tracking.promotion import Standing, judge

ROOT = Path(__file__).parents[2]
MODEL = "tiny"
DATA, OTHER = "1" * 32 + ".dir", "2" * 32 + ".dir"


@pytest.fixture
def store(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(empty_database, path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    return path


@pytest.fixture
def client(store: Path) -> mlflow.MlflowClient:
    """Speaks to a store in which the model has no version yet."""
    client = mlflow.MlflowClient(f"sqlite:///{store}")
    client.create_registered_model(MODEL)
    return client


def add(client: mlflow.MlflowClient, jf: float, data: str = DATA) -> str:
    """A version that scored `jf` in 0..1, tagged as `register_model` does it."""
    tags = {"jf_mean": f"{jf:.4f}", "data.videos.md5": data}
    return str(client.create_model_version(MODEL, source="file:///nowhere", tags=tags).version)


def aliases(client: mlflow.MlflowClient) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(MODEL).aliases.items()}


# The verdict


@pytest.mark.parametrize(
    ("candidate", "champion", "policy", "promoted", "reason"),
    [
        ((50, DATA), None, {}, True, "J&F 50.00, the first champion"),
        ((50, None), None, {}, True, "the first champion"),
        ((50, DATA), None, {"min_jf": 50}, True, "the first champion"),
        ((49.99, DATA), None, {"min_jf": 50}, False, "J&F 49.99, a champion needs 50"),
        ((math.nan, DATA), None, {}, False, "J&F nan, a champion needs 0"),
        ((86.01, DATA), (86, DATA), {}, True, "a lead of 0.01, more than 0 is needed"),
        (
            (86, DATA),
            (86, DATA),
            {},
            False,
            "J&F 86.00 against 86.00 of version 1, the champion: a lead of 0.00, more than 0",
        ),
        ((85, DATA), (86, DATA), {}, False, "a lead of -1.00, more than 0 is needed"),
        ((87.1, DATA), (86.1, DATA), {"margin": 1}, False, "a lead of 1.00, more than 1 is needed"),
        ((87.11, DATA), (86.1, DATA), {"margin": 1}, True, "a lead of 1.01, more than 1 is needed"),
        ((99, DATA), (86, DATA), {"min_jf": 99.5}, False, "J&F 99.00, a champion needs 99.5"),
        ((99, OTHER), (86, DATA), {}, False, f"scored on other data than the champion, version 1: {OTHER}, not {DATA}"),
        ((99, None), (86, None), {}, False, "scored on other data than the champion, version 1: unknown, not unknown"),
        ((99, DATA), (math.nan, DATA), {}, False, "against nan of version 1"),
    ],
)
def test_verdicts(candidate, champion, policy, promoted, reason) -> None:
    standing = Standing("1", *champion) if champion else None
    verdict = judge(Standing("2", *candidate), standing, PromotionPolicy(**policy))
    assert verdict.promoted == promoted
    assert any(reason in each for each in verdict.reasons), verdict.reasons
    assert verdict.champion == ("2" if promoted else "1" if champion else None)


def test_every_reason_is_told() -> None:
    verdict = judge(Standing("2", 40, OTHER), Standing("1", 86, DATA), PromotionPolicy(min_jf=50))
    assert [reason.split(",")[0] for reason in verdict.reasons] == [
        "J&F 40.00",
        "scored on other data than the champion",
    ]


# The aliases


def test_each_better_version_takes_over_and_the_one_before_stays_at_hand(client: mlflow.MlflowClient) -> None:
    first, worse, second, third = (add(client, jf) for jf in (0.80, 0.79, 0.82, 0.83))
    assert promote(MODEL, first, PromotionPolicy()) == Verdict(True, ("J&F 80.00, the first champion",), first)
    assert aliases(client) == {"champion": first}
    refused = promote(MODEL, worse, PromotionPolicy())
    assert (refused.promoted, refused.champion) == (False, first)
    assert aliases(client) == {"champion": first}
    assert promote(MODEL, second, PromotionPolicy()).promoted
    assert aliases(client) == {"champion": second, "previous": first}
    assert promote(MODEL, third, PromotionPolicy()).promoted
    assert aliases(client) == {"champion": third, "previous": second}
    tags = {version: client.get_model_version(MODEL, version).tags["promotion"] for version in (first, worse, third)}
    assert tags[first] == "promoted: J&F 80.00, the first champion"
    assert tags[worse] == f"refused: {refused.reasons[0]}"
    assert tags[third].startswith("promoted: J&F 83.00 against 82.00 of version 3, the champion")


def test_a_version_of_other_data_changes_nothing(client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture) -> None:
    champion, candidate = add(client, 0.80), add(client, 0.99, OTHER)
    promote(MODEL, champion, PromotionPolicy())
    caplog.set_level(logging.INFO, "pdnet")
    caplog.clear()
    verdict = promote(MODEL, candidate, PromotionPolicy())
    assert not verdict.promoted
    assert aliases(client) == {"champion": champion}
    (line,) = (record.message for record in caplog.records if record.name.startswith("pdnet"))
    assert line == f"{MODEL} version {candidate} refused: {verdict.reasons[0]}"


def test_a_version_that_was_registered_by_other_means_is_not_promoted(client: mlflow.MlflowClient) -> None:
    version = str(client.create_model_version(MODEL, source="file:///nowhere").version)
    assert not promote(MODEL, version, PromotionPolicy()).promoted
    assert aliases(client) == {}


def test_a_store_that_breaks_off_leaves_a_champion_and_the_next_call_repairs(
    client: mlflow.MlflowClient, store: Path
) -> None:
    oldest, old, new = (add(client, jf) for jf in (0.78, 0.80, 0.90))
    promote(MODEL, oldest, PromotionPolicy())
    promote(MODEL, old, PromotionPolicy())
    with contextlib.closing(sqlite3.connect(store)) as connection:
        connection.execute(
            "CREATE TRIGGER refuse BEFORE UPDATE ON registered_model_aliases WHEN NEW.alias = 'champion' "
            "BEGIN SELECT RAISE(ABORT, 'the champion stays'); END"
        )
    with pytest.raises(TrackingError, match="the champion stays"):
        promote(MODEL, new, PromotionPolicy())
    assert aliases(client) == {"champion": old, "previous": old}
    assert "promotion" not in client.get_model_version(MODEL, new).tags
    with contextlib.closing(sqlite3.connect(store)) as connection:
        connection.execute("DROP TRIGGER refuse")
    assert promote(MODEL, new, PromotionPolicy()).promoted
    assert aliases(client) == {"champion": new, "previous": old}


# The policy file


def test_the_projects_policy_states_every_rule() -> None:
    path = ROOT / "configs" / "promotion.yaml"
    assert load_yaml(PromotionPolicy, path, what="a policy") == PromotionPolicy()
    assert set(yaml.safe_load(path.read_text())) == set(PromotionPolicy.__dataclass_fields__)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("margn: 1", "unknown key 'margn'; did you mean 'margin'?"),
        ("margin: much", "margin: found 'much' (str), expected a number"),
        ("margin: -1", "margin: -1.0, expected 0 to 100"),
        ("min_jf: 101", "min_jf: 101.0, expected 0 to 100"),
        ("min_jf: 1\nmin_jf: 2", "line 2: the key 'min_jf' is in line 1 already"),
        ("- 1", "the file: found [1] (list), expected a mapping of keys"),
        (None, "no such file; expected a promotion policy as YAML"),
    ],
)
def test_a_wrong_policy_is_refused_before_anything_is_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, message: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    path = tmp_path / "policy.yaml"
    if text is not None:
        path.write_text(text)
    folders = dict.fromkeys(("pretrain", "train", "evaluation", "export", "report"), tmp_path / "none")
    with pytest.raises(ConfigError) as caught:
        steps.register(**folders, out=tmp_path / "out", config=tiny_config(), policy=path)
    assert str(caught.value) == f"{path}: {message}"
    assert not (tmp_path / "mlflow.db").exists()


# The register step


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return write_finished_run(tmp_path / "run")


def write_tensorrt(folder: Path, onnx: Path) -> Path:
    folder.mkdir()
    (folder / "pdnet.engine").write_bytes(b"an engine")
    parity = {"sha256": hashlib.sha256(b"an engine").hexdigest(), "onnx_sha256": file_digest(onnx)}
    (folder / "parity.json").write_text(json.dumps(parity))
    (folder / "run.json").write_text(json.dumps({"step": "export_tensorrt", "started": "2026-01-02T03:04:05+00:00"}))
    return folder


def test_register_promotes_once_and_ends_well_when_the_policy_refuses(
    store: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{store}")
    parent = client.create_run(client.create_experiment("Kubeflow's"), run_name="task")
    untouched = client.get_run(parent.info.run_id).to_dictionary()
    monkeypatch.setenv("MLFLOW_RUN_ID", parent.info.run_id)
    tensorrt = write_tensorrt(tmp_path / "tensorrt", folders["export"] / "pdnet.onnx")
    policy, config = ROOT / "configs" / "promotion.yaml", tiny_config()
    facts = {}
    for name, more in {
        "plain": {},
        "first": {"policy": policy, "tensorrt": tensorrt},
        "again": {"policy": policy},
    }.items():
        steps.register(**folders, **more, out=tmp_path / name, config=config)
        facts[name] = json.loads((tmp_path / name / "registration.json").read_text())

    assert "promotion" not in facts["plain"]
    assert facts["first"]["promotion"] == {
        "promoted": True,
        "reasons": ["J&F 86.00, the first champion"],
        "champion": "2",
    }
    again = facts["again"]["promotion"]
    assert (again["promoted"], again["champion"]) == (False, "2")
    assert again["reasons"] == [
        "J&F 86.00 against 86.00 of version 2, the champion: a lead of 0.00, more than 0 is needed"
    ]
    assert aliases(client) == {"champion": "2", "candidate": "3"}

    record = json.loads((tmp_path / "first" / "run.json").read_text())
    run_id = facts["first"]["run_id"]
    assert (record["mlflow_run_id"], record["model"], record["model_version"]) == (run_id, MODEL, "2")
    assert set(record["parents"]) == {"export", "export_tensorrt"}

    run = client.get_run(run_id)
    files = {path.path for path in client.list_artifacts(run_id, "export/tensorrt")}
    assert files == {f"export/tensorrt/{name}" for name in ("pdnet.engine", "parity.json", "run.json")}
    digest = file_digest(tensorrt / "pdnet.engine")
    assert run.data.tags["tensorrt.sha256"] == client.get_model_version(MODEL, "2").tags["tensorrt.sha256"] == digest
    assert "tensorrt.sha256" not in client.get_run(facts["again"]["run_id"]).data.tags

    experiment = client.get_experiment_by_name(config.tracking.experiment).experiment_id
    assert run.info.experiment_id == experiment
    assert {each.data.tags["mlflow.parentRunId"] for each in client.search_runs([experiment])} == {parent.info.run_id}
    assert client.get_run(parent.info.run_id).to_dictionary() == untouched
    assert client.list_artifacts(parent.info.run_id) == []


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        ("engine", ExportError, r"pdnet\.engine: not the file that was compared"),
        ("onnx", ExportError, "built from another ONNX file"),
        ("missing", DataError, r"pdnet\.engine: no such file"),
    ],
)
def test_an_engine_that_is_not_of_this_run_is_refused_before_there_is_a_run(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    tensorrt = write_tensorrt(tmp_path / "tensorrt", folders["train"] / "model.safetensors")
    if damage == "engine":
        (tensorrt / "pdnet.engine").write_bytes(b"another engine")
    if damage == "missing":
        (tensorrt / "pdnet.engine").unlink()
    with pytest.raises(error, match=message):
        steps.register(**folders, tensorrt=tensorrt, out=tmp_path / "out", config=tiny_config())
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "mlflow.db").exists()
