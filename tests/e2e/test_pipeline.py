"""The whole pipeline through the real commands, once, on drawn data: from `dvc repro` to a registered model."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from tiny_profile import SIZE, tiny_params, write_params

for library in ("dvc", "great_expectations", "mlflow", "onnxruntime"):
    pytest.importorskip(library)

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
#: enough for masks that look like portraits
RATES = ("image_backbone_lr", "image_rest_lr", "video_backbone_lr", "video_rest_lr")
LEARNING: dict[str, Any] = {
    "pretrain": {"epochs": 10, "size": SIZE, "lr": 5e-3},
    "train": {"epochs": 5, "size": SIZE, **dict.fromkeys(RATES, 3e-3)},
    "tracking": {"live": True},
}


class Workspace:
    """A folder that looks like a fresh clone of the project."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.build = root / "build"
        self.data = root / "data" / "mvps"

    def run(self, *command: str, code: int = 0) -> str:
        """Run a command as a user would; what it prints on both streams."""
        environment = os.environ | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "DVC_SITE_CACHE_DIR": str(self.root / ".dvc" / "site"),
            "DVC_NO_ANALYTICS": "1",
            "OMP_NUM_THREADS": "1",  # on a busy machine two threads that wait for each other take fifty times as long
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
        }
        for name in ("PYTHONDONTWRITEBYTECODE", "MLFLOW_TRACKING_URI", "PDNET_MLFLOW_BUFFER"):
            environment.pop(name, None)  # without bytecode, imports would take twice as long
        run = subprocess.run(command, check=False, cwd=self.root, env=environment, capture_output=True, text=True)
        assert run.returncode == code, f"{' '.join(command)}\n{run.stdout}\n{run.stderr}"
        return run.stdout + run.stderr

    def json(self, path: str) -> Any:
        return json.loads((self.build / path).read_text())


def ran(text: str) -> list[str]:
    return re.findall(r"Running stage '(\w+)'", text)


def unchanged(text: str) -> list[str]:
    return re.findall(r"Stage '(\w+)' didn't change", text)


@pytest.fixture(scope="module")
def clone(portraits: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The project's files, data of our own, nothing built."""
    space = Workspace(tmp_path_factory.mktemp("clone"))
    needed = ("dvc.yaml", ".gitignore", ".dvcignore", ".dvc/config")
    for name in (*needed, "configs/export.yaml", "benchmarks/results/ablation-ipda.json"):
        (space.root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, space.root / name)
    shutil.copytree(ROOT / "pdnet", space.root / "pdnet", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(portraits, space.data)
    write_params(space.root / "params.yaml", **LEARNING)
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    space.run("git", "init", "--quiet")
    space.run("dvc", "add", "--quiet", "data")
    space.run("git", "add", "dvc.yaml", "params.yaml", "data.dvc")
    space.run("git", *identity, "commit", "--quiet", "-m", "The project")
    return space


@pytest.fixture(scope="module")
def repro(clone: Workspace) -> str:
    """What the first `dvc repro` printed."""
    return clone.run("dvc", "repro")


@pytest.fixture(scope="module")
def done(clone: Workspace, repro: str) -> Workspace:
    """The workspace after it."""
    return clone


def test_every_stage_ran_once_in_order(repro):
    assert ran(repro) == STAGES
    assert "Traceback" not in repro
    assert "warning" not in repro.lower()


def test_every_output_is_there(done):
    names = {
        "validation": "summary.json frames.parquet clips.parquet stills.parquet index.html run.json",
        "pretrain": "model.safetensors log.parquet run.json",
        "train": "model.safetensors log.parquet run.json",
        "evaluation": "scores.json frames.parquet clips.parquet baselines.parquet run.json",
        "export": "pdnet.onnx parity.json run.json",
        "report": "index.html run.json",
        "registration": "registration.json run.json",
    }
    assert {path.name for path in done.build.iterdir()} == set(names)  # nothing temporary either
    for folder, files in names.items():
        for name in files.split():
            assert (done.build / folder / name).stat().st_size > 0, f"{folder}/{name}"
    for kind in ("masks", "parts"):
        assert len(list((done.build / "evaluation" / kind / "talk" / "c").glob("*.png"))) == 6


def test_the_logs_tell_every_step(done):
    pretrain, train = (pd.read_parquet(done.build / name / "log.parquet") for name in ("pretrain", "train"))
    assert list(pretrain["step"]) == list(range(10))  # 5 stills: one batch an epoch
    # 12 frames: 3 batches an epoch, the first and the third after a batch of images.
    assert train["phase"].value_counts().to_dict() == {"video": 15, "image": 10}
    assert (train["phase"].iloc[:4] == ["image", "video", "video", "image"]).all()
    assert np.isfinite(train["loss"]).all()
    assert train["loss"].iloc[-3:].mean() < train["loss"].iloc[:3].mean()


def test_the_lineage_goes_from_step_to_step(done):
    commit = done.run("git", "rev-parse", "HEAD").strip()
    parents = {"pretrain": "validate", "train": "pretrain", "evaluation": "train", "export": "evaluate"}
    tracked = yaml.safe_load((done.root / "data.dvc").read_text())["outs"][0]["md5"]
    hashes = set()
    for folder in ("validation", *parents, "report", "registration"):
        record = done.json(f"{folder}/run.json")
        hashes.add(record["config_hash"])
        assert (record["git_commit"], record["git_dirty"], record["data_dvc"]) == (commit, False, tracked)
        assert record["data"]["images"]["files"] == 10
        assert record["data"]["videos"]["files"] == 3 * 6 * 2 + 2 + 10
        if folder in parents:
            assert parents[folder] in record["parents"]
    assert len(hashes) == 1


def test_scores_are_those_of_the_masks_it_wrote(done):
    scores = done.json("evaluation/scores.json")
    assert (scores["clips"], scores["frames"]) == (1, 6)
    out = done.root / "score.json"
    masks, truth = (str(path) for path in (done.build / "evaluation" / "masks", done.data / "Annotations" / "480p"))
    shutil.copytree(Path(truth) / "talk" / "c", done.root / "truth" / "talk" / "c")
    done.run("pdnet", "score", "--predictions", masks, "--annotations", "truth", "--json", str(out))
    again = json.loads(out.read_text())["dataset"]
    assert scores["jf_mean"] == pytest.approx(again["jf_mean"], abs=1e-12)
    for measure in "jf":
        for figure in ("mean", "recall", "decay"):
            assert scores[measure][figure] == pytest.approx(again[f"{measure}_{figure}"], abs=1e-12)
    assert len(scores["baselines"]) >= 4
    assert min(scores["speed"]["network_fps"], scores["speed"]["end_to_end_fps"]) > 0
    assert sum(scores["parts"]["share"]) == pytest.approx(1)
    assert scores["parts"]["match"] is None  # nobody knows the true parts of these drawings


def test_the_onnx_file_draws_the_masks_that_were_scored(done):
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(done.build / "export" / "pdnet.onnx"), providers=["CPUExecutionProvider"]
    )
    frames = sorted((done.data / "Keyframes" / "480p" / "talk" / "c").iterdir())

    def as_input(path: Path) -> np.ndarray:
        small = Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        normal = (np.asarray(small) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        return normal.transpose(2, 0, 1)[None].astype(np.float32)

    portrait = []
    for path in frames:
        (probability,) = session.run(None, {"target": as_input(path), "reference": as_input(frames[0])})
        written = np.asarray(Image.open(done.build / "evaluation" / "masks" / "talk" / "c" / f"{path.stem}.png"))
        large = torch.nn.functional.interpolate(
            torch.from_numpy(probability), written.shape, mode="bilinear", align_corners=True
        )[0, 0].numpy()
        sure = np.abs(large - 0.5) > 1e-3
        assert sure.mean() > 0.9
        np.testing.assert_array_equal((large >= 0.5)[sure], (written == 255)[sure])
        portrait.append((written == 255).mean())
    assert 0.05 < np.mean(portrait) < 0.95, "the case says nothing where all pixels are alike"


def test_parity_was_measured_on_this_file(done):
    parity = done.json("export/parity.json")
    assert parity["frames"] == 3
    assert parity["max_probability_difference"] <= 1e-3
    assert parity["torch"]["jf_mean"] == done.json("evaluation/scores.json")["jf_mean"]
    assert parity["onnx"]["jf_mean"] == pytest.approx(parity["torch"]["jf_mean"], abs=5e-4)
    assert parity["sha256"] == hashlib.sha256((done.build / "export" / "pdnet.onnx").read_bytes()).hexdigest()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy
def test_the_registered_version_holds_the_file_and_its_scores(done):
    from mlflow import MlflowClient

    registration = done.json("registration/registration.json")
    client = MlflowClient(f"sqlite:///{done.root / 'mlflow.db'}")
    version = client.get_model_version(registration["model"], registration["version"])
    assert (registration["model"], registration["version"]) == ("tiny", "1")
    assert version.status == "READY"
    assert client.get_model_version_by_alias("tiny", "candidate").version == version.version
    exported = (done.build / "export" / "pdnet.onnx").read_bytes()
    files = Path(registration["model_artifact_uri"].removeprefix("file://"))
    assert any(path.read_bytes() == exported for path in files.rglob("*.onnx"))
    run = client.get_run(registration["run_id"])
    assert run.info.status == "FINISHED"
    scores = done.json("evaluation/scores.json")
    assert run.data.metrics["jf_mean"] == pytest.approx(scores["jf_mean"])
    assert run.data.params["train.epochs"] == "5"
    assert f"{scores['jf_mean']:.4f}" in version.tags.values()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy
def test_each_step_has_a_run_beneath_the_models_and_trainings_recorded_themselves(done):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{done.root / 'mlflow.db'}")
    registration = done.json("registration/registration.json")
    found = {run.info.run_name: run for run in client.search_runs([registration["experiment_id"]])}
    assert len(found) == len(client.search_runs([registration["experiment_id"]])) == len(STAGES)
    for stage in set(STAGES) - {"register"}:
        tags = found[stage].data.tags
        assert tags["mlflow.parentRunId"] == registration["run_id"]
        assert found[stage].info.status == "FINISHED"
        assert {"step", "git.commit", "git.dirty", "config.hash", "pdnet.version", "host"} <= tags.keys(), stage
    for stage, curve in {"pretrain": "pretrain/loss", "train": "lr/rest"}.items():
        run = found[stage]
        assert run.info.run_id == done.json(f"{stage}/run.json")["mlflow_run_id"]
        assert (run.data.tags["device"], run.data.tags["precision"]) == (
            found["evaluate"].data.tags["device"],
            "float32",
        )
        log = pd.read_parquet(done.build / stage / "log.parquet")
        steps = [point.step for point in client.get_metric_history(run.info.run_id, curve)]
        assert sorted(steps) == list(log["step"])
        assert "system/cpu_utilization_percentage" in run.data.metrics
    assert not list((done.root / "mlflow-buffer").iterdir())


class References(HTMLParser):
    """Everything that a page loads, and where it leads."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "data", "poster", "srcset", "action") or name.endswith(":href"):
                (self.links if tag == "a" else self.loaded).append(value or "")


def test_the_report_is_one_file(done):
    page = (done.build / "report" / "index.html").read_text(encoding="utf-8")
    found = References()
    found.feed(page)
    assert [value[:80] for value in found.loaded if not value.startswith(("data:", "#"))] == []
    for link in found.links:
        assert link.startswith("#") or (done.build / "report" / link).is_file(), link
    assert not {"script", "iframe", "object", "embed"} & found.tags
    assert "link" not in found.tags
    assert re.findall(r"url\((?!['\"]?(?:data:|#))|@import", page) == []
    assert sum(value.startswith("data:image/") for value in found.loaded) > 5  # overlays and part maps
    assert "svg" in found.tags
    jf = done.json("evaluation/scores.json")["jf_mean"]
    assert f"{100 * jf:.1f}" in page


def test_again_there_is_nothing_to_do(done):
    text = done.run("dvc", "repro")
    assert ran(text) == []
    assert unchanged(text) == STAGES
    assert "up to date" in text


def test_a_training_parameter_runs_training_and_what_follows(done, tmp_path):
    changed = Workspace(Path(shutil.copytree(done.root, tmp_path / "changed", symlinks=True)))
    params = tiny_params(**LEARNING)
    params["train"]["epochs"] = 1
    (changed.root / "params.yaml").write_text(yaml.safe_dump(params))
    text = changed.run("dvc", "repro", "train")
    assert unchanged(text) == ["validate", "pretrain"]
    assert ran(text) == ["train"]
    assert len(pd.read_parquet(changed.build / "train" / "log.parquet")) == 5
    waiting = set(json.loads(changed.run("dvc", "status", "--json")))
    assert waiting == {"evaluate", "export_onnx", "report", "register"}


def test_summary_shows_the_scores_and_leads_to_a_command_that_works(done):
    text = done.run("pdnet", "summary")
    scores = done.json("evaluation/scores.json")
    (row,) = (line for line in text.splitlines() if line.startswith("PDNet  "))
    figures = [scores["jf_mean"], *(scores[m][s] for m in "jf" for s in ("mean", "recall", "decay"))]
    assert row.split()[1:-1] == [f"{100 * figure:.1f}" for figure in figures]
    for baseline in scores["baselines"]:
        assert baseline["method"] in text
    assert "build/report/index.html" in text
    assert "tiny version 1" in text
    (command,) = re.findall(r"pdnet predict .*", text)
    printed = done.run(*command.split())
    assert "6 masks in build/predict" in printed
    for path in (done.build / "evaluation" / "masks" / "talk" / "c").iterdir():
        same = np.asarray(Image.open(done.build / "predict" / path.name)) == np.asarray(Image.open(path))
        assert same.mean() > 0.99  # `predict` may compute in bfloat16, where the processor is fast at that


def test_damaged_data_stop_the_pipeline_at_its_first_stage(done, tmp_path):
    broken = Workspace(Path(shutil.copytree(done.root, tmp_path / "broken", symlinks=True)))
    frame = broken.data / "Keyframes" / "480p" / "talk" / "a" / "00005.jpg"
    frame.write_bytes(frame.read_bytes()[:900])
    text = broken.run("dvc", "repro", "--single-item", "validate", code=255)
    (error,) = (line for line in text.splitlines() if line.startswith("pdnet: error: "))
    assert "00005.jpg: damaged image" in error
    assert "Traceback" not in text
