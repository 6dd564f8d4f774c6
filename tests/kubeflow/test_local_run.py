"""The whole pipeline by `kfp run pipelines/pdnet.py` in processes, and what a user sees when a step fails."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml
from project_copy import Project
from tiny_profile import tiny_params

pytest.importorskip("kfp")
pytest.importorskip("mlflow")

TASKS = ["data", "validate", "pretrain", "train", "evaluate", "export-onnx", "report", "register", "outcome"]


def ran(text: str) -> list[str]:
    return re.findall(r"^([\w-]+): done after", text, re.MULTILINE)


@pytest.fixture(scope="module")
def project(portraits: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"), portraits)


@pytest.fixture(scope="module")
def first(project: Project) -> str:
    return project.run("kfp", "run", "pipelines/pdnet.py", "--policy", "configs/promotion.yaml")


@pytest.fixture(scope="module")
def done(project: Project, first: str) -> Project:
    return project


def rows(project: Project, query: str) -> list[tuple[str, ...]]:
    with sqlite3.connect(project.root / "mlflow.db") as store:
        return store.execute(query).fetchall()


def test_every_task_runs_once_in_order_without_a_cluster(first):
    assert ran(first) == [*TASKS, "pipeline"]
    assert "Traceback" not in first
    assert "Warning" not in first
    assert "executor_input" not in first


def test_nothing_is_left_of_the_workspace(done):
    assert not list(done.results.glob("workspace-*"))


def test_the_figures_are_beside_the_artifacts(done):
    scores = done.json("evaluate/out/scores.json")
    told = done.outputs("evaluate")
    md5 = yaml.safe_load((done.root / "data.dvc").read_text())["outs"][0]["md5"]
    assert told["out"]["J&F"] == pytest.approx(100 * scores["jf_mean"], abs=0.005)
    assert told["out"]["data_dvc"] == md5
    assert told["scores"]["J&F"] == told["out"]["J&F"]
    assert told["scores"]["FPS network"] == pytest.approx(scores["speed"]["network_fps"], abs=0.005)
    assert done.outputs("data")["dataset"]["md5"] == md5
    assert done.outputs("export-onnx")["out"]["J&F onnx"] == told["out"]["J&F"]


def test_the_confusion_matrix_counts_every_pixel(done):
    matrix = done.outputs("evaluate")["pixels"]["confusionMatrix"]
    counts = [row["row"] for row in matrix["rows"]]
    assert [spec["displayName"] for spec in matrix["annotationSpecs"]] == ["background", "portrait"]
    assert sum(map(sum, counts)) == 6 * 72 * 96  # frames of the validation clip
    assert counts[1][1] > 0


def test_the_pages_are_whole(done):
    page = done.file("report/page").read_text()
    assert page == done.file("report/out/index.html").read_text()
    assert page.count("data:image/") >= 3  # overlays and part maps
    assert "<html" in done.file("validate/findings").read_text()


def test_data_are_brought_by_pointer(done):
    assert done.json("data/dataset").keys() == {"md5", "revision", "remote"}
    assert not list(done.last_run().rglob("*.jpg"))
    record = done.json("train/out/run.json")
    assert record["data_dvc"] == done.json("data/dataset")["md5"]
    assert record["data_revision"] == done.run("git", "rev-parse", "HEAD").strip()


def test_code_and_parameters_are_on_record(done):
    record = done.json("export-onnx/out/run.json")
    assert record["git_commit"] == done.run("git", "rev-parse", "HEAD").strip()
    assert record["git_dirty"] is False
    commits = rows(done, "SELECT DISTINCT value FROM tags WHERE key = 'git.commit'")  # of all runs
    assert commits == [(record["git_commit"],)]


def test_the_model_is_registered_and_promoted(done):
    registered = done.json("register/out/registration.json")
    assert registered["promotion"]["promoted"] is True
    aliases = dict(rows(done, "SELECT alias, version FROM registered_model_aliases"))
    assert {name: str(version) for name, version in aliases.items()} == {"candidate": "1", "champion": "1"}
    card = done.file("register/registration").read_text()
    assert card.startswith("# tiny, version 1\n")
    assert "promoted to champion" in card


@pytest.mark.slow
def test_dvc_and_kubeflow_make_the_same_model(done):
    done.run("dvc", "repro", "export_onnx")
    ours = done.json("export-onnx/out/parity.json")
    theirs = json.loads((done.root / "build" / "export" / "parity.json").read_text())
    assert ours == theirs
    assert done.file("export-onnx/out/pdnet.onnx").read_bytes() == (done.root / "build/export/pdnet.onnx").read_bytes()
    scores = [
        json.loads(path.read_text())
        for path in (
            done.file("evaluate/out/scores.json"),
            done.root / "build" / "evaluation" / "scores.json",
        )
    ]
    assert {key: value for key, value in scores[0].items() if key != "speed"} == {
        key: value for key, value in scores[1].items() if key != "speed"
    }


class TestLater:
    """Runs after the first."""

    def test_unchanged_steps_are_taken_from_it_and_registration_is_not(self, done):
        again = done.run("kfp", "run", "pipelines/pdnet.py")
        assert re.findall(r"^([\w-]+): unchanged", again, re.MULTILINE) == TASKS[:7]
        assert ran(again) == ["register", "outcome", "pipeline"]

    @pytest.mark.slow
    def test_a_failing_step_is_one_line_and_on_record(self, done):
        strict = tiny_params(validation={"min_short_side": 400, "collection": "error"})
        (done.root / "strict.yaml").write_text(yaml.safe_dump(strict))
        failed = done.run("kfp", "run", "pipelines/pdnet.py", "--params", "strict.yaml", code=1)
        (line,) = (line for line in failed.splitlines() if "error" in line)
        assert line.startswith("    pdnet: error: validate: ")
        assert "min_short_side" in line
        assert "Traceback" not in failed
        assert "validate: FAILED" in failed
        assert "pretrain" not in failed  # nor anything after it
        assert failed.splitlines()[-1].startswith("pipeline: FAILED after ")
        page = done.file("validate/findings").read_text()
        assert "min_short_side" in page  # the findings are there all the same
        (told,) = rows(done, "SELECT value FROM tags WHERE key = 'outcome.message'")
        assert told[0].startswith("validate: ")
        assert "min_short_side" in told[0]
        assert rows(done, "SELECT status FROM runs WHERE name LIKE 'failed %'") == [("FAILED",)]

    @pytest.mark.slow
    def test_other_bounds_repeat_the_export_alone(self, done):
        """No file is the network to the last bit."""
        none = {"max_probability_difference": 0.0, "mean_probability_difference": 0.0}
        bounds = {"fp32": none | {"min_mask_agreement": 1.0, "max_jf_difference": 0.0}}
        (done.root / "none.yaml").write_text(yaml.safe_dump(bounds))
        failed = done.run("kfp", "run", "pipelines/pdnet.py", "--bounds", "none.yaml", code=1)
        assert re.findall(r"^([\w-]+): unchanged", failed, re.MULTILINE) == TASKS[:5]
        assert (
            "pdnet: error: export_onnx: the fp32 ONNX file is not the same model: max probability difference" in failed
        )
        assert "allowed 0" in failed
        assert ran(failed) == ["outcome"]

    @pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
    def test_a_run_that_is_stopped_leaves_nothing_working(self, done, number):
        command = ("kfp", "run", "pipelines/pdnet.py", "--no-cache")
        process = subprocess.Popen(
            command, cwd=done.root, env=done.environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        tasks: list[psutil.Process] = []
        while not tasks and process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):  # one of the short ones
                tasks = [
                    child
                    for child in psutil.Process(process.pid).children(recursive=True)
                    if "kfp.dsl.executor_main" in child.cmdline()
                ]
            time.sleep(0.05)
        process.send_signal(number)
        _, told = process.communicate()
        assert process.returncode == 130
        assert told == "kfp: interrupted\n"
        assert tasks
        assert not any(task.is_running() and task.status() != psutil.STATUS_ZOMBIE for task in tasks)
        assert not list(done.results.glob("workspace-*"))

    @pytest.mark.slow
    def test_an_older_version_of_the_data_is_named_by_its_revision(self, done):
        revision = done.run("git", "rev-parse", "HEAD").strip()
        (done.root / "data" / "mvps" / "note.txt").write_text("a newer version\n")
        done.run("dvc", "add", "--quiet", "data")
        text = done.run("kfp", "run", "pipelines/pdnet.py", "--data-version", "HEAD", "tensorrt=true")
        assert re.findall(r"^([\w-]+): unchanged", text, re.MULTILINE) == TASKS[:7]
        # Asked for, but there is no GPU: the run goes on without an engine.
        assert ran(text) == ["register-2", "outcome", "pipeline"]
        assert done.json("register-2/out/run.json")["data_revision"] == revision
