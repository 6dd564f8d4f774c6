"""A step as a task in a container: its arguments, its failures, its processes, its figures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_profile import decided_network, tiny_config, tiny_params
from training_task import Training

from pdnet import container
from pdnet.container import Task, task
from pdnet.errors import ConfigError, DataError, ExportError, PDNetError, PromotionError, UnavailableError
from pdnet.files import folder_digest
from pdnet.steps import evaluate
from pdnet.weights import save_model

PARAMS = yaml.safe_dump(tiny_params())
ENVIRONMENT = ("PDNET_GIT_COMMIT", "PDNET_IMAGE", "MLFLOW_TRACKING_URI")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """What a task sets is gone after the test."""
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PDNET_MLFLOW_BUFFER", "")
    monkeypatch.delenv("PDNET_MLFLOW_BUFFER")  # which is taken where it is set


def code_of(ended: pytest.ExceptionInfo[SystemExit]) -> int:
    assert isinstance(ended.value.code, int)
    return ended.value.code


class TestTask:
    def test_the_params_file_becomes_the_configuration(self, tmp_path):
        with task("train", params=PARAMS, workspace=str(tmp_path)) as run:
            assert run == Task("train", tiny_config(), tmp_path)
            assert run.checkpoints == tmp_path / "checkpoints" / "train"
            assert run.place_of("ab" * 16 + ".dir") == tmp_path / "data" / ("ab" * 16)
        assert not list(tmp_path.iterdir())

    def test_a_wrong_key_is_one_line(self, tmp_path, capsys):
        with (
            pytest.raises(SystemExit) as ended,
            task("train", params=PARAMS.replace("resolution", "resolutoin"), workspace=str(tmp_path)),
        ):
            pytest.fail("the step must not run")
        assert code_of(ended) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("pdnet: error: train: params: ")
        assert "'resolution'" in line
        assert container.failures(tmp_path) == {"train": line.removeprefix("pdnet: error: train: ")}

    @pytest.mark.parametrize(
        ("error", "code", "line"),
        [
            (DataError("clip a: no frames"), 2, "clip a: no frames"),
            (PromotionError("J&F 80.0, expected 90.0"), 3, "J&F 80.0, expected 90.0"),
            (UnavailableError("no TensorRT here"), 4, "no TensorRT here"),
            (OSError(28, "No space left on device", "/x"), 2, "[Errno 28] No space left on device: '/x'"),
            (
                ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt"),
                4,
                "the package 'tensorrt' is not installed; try: pip install 'pdnet[pipeline]'",
            ),
        ],
    )
    def test_a_failure_is_one_line_a_note_and_an_exit_code(self, tmp_path, capsys, error, code, line):
        with pytest.raises(SystemExit) as ended, task("export_onnx", params=PARAMS, workspace=str(tmp_path)):
            raise error
        assert code_of(ended) == code
        assert capsys.readouterr().err == f"pdnet: error: export_onnx: {line}\n"
        assert (tmp_path / "failures" / "export_onnx.txt").read_text() == f"{line}\n"

    def test_what_was_compared_stands_before_the_line(self, tmp_path, capsys):
        with pytest.raises(SystemExit), task("export_onnx", params=PARAMS, workspace=str(tmp_path)):
            raise ExportError("not the same model", "size  largest\n  65  0.5")
        assert capsys.readouterr().err == "size  largest\n  65  0.5\npdnet: error: export_onnx: not the same model\n"
        assert container.failures(tmp_path) == {"export_onnx": "not the same model"}

    def test_a_defect_keeps_its_traceback_and_is_noted_too(self, tmp_path):
        with pytest.raises(ZeroDivisionError), task("train", params=PARAMS, workspace=str(tmp_path)):
            _ = 1 / 0
        assert container.failures(tmp_path) == {"train": "ZeroDivisionError: division by zero"}

    def test_a_retry_that_succeeds_removes_its_note_and_no_other(self, tmp_path):
        for step in ("train", "evaluate"):
            with pytest.raises(SystemExit), task(step, params=PARAMS, workspace=str(tmp_path)):
                raise DataError(f"first attempt of {step}")
        with task("train", params=PARAMS, workspace=str(tmp_path)):
            assert container.failures(tmp_path).keys() == {"train", "evaluate"}
        assert container.failures(tmp_path) == {"evaluate": "first attempt of evaluate"}

    def test_a_workspace_that_cannot_be_written_hides_nothing(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        with pytest.raises(SystemExit) as ended, task("train", params=PARAMS, workspace=str(tmp_path / "file")):
            raise UnavailableError("no such device")
        assert code_of(ended) == 4
        assert capsys.readouterr().err == "pdnet: error: train: no such device\n"

    def test_the_experiment_may_be_replaced(self, tmp_path):
        with task("register", params=PARAMS, workspace=str(tmp_path), experiment="nightly") as run:
            assert run.config.tracking.experiment == "nightly"
            assert run.config.tracking.model == "tiny"
        with task("register", params=PARAMS, workspace=str(tmp_path), experiment="") as run:
            assert run.config == tiny_config()

    def test_what_the_record_needs_is_in_the_environment(self, tmp_path):
        given = {"code": "1234abcd", "image": "pdnet@sha256:1", "mlflow_uri": "http://mlflow:5000"}
        with task("train", params=PARAMS, workspace=str(tmp_path), **given):
            assert [os.environ[name] for name in ENVIRONMENT] == list(given.values())

    def test_an_image_says_itself_which_code_is_in_it(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PDNET_GIT_COMMIT", "of-the-image")
        with task("train", params=PARAMS, workspace=str(tmp_path), code="of-the-caller"):
            assert os.environ["PDNET_GIT_COMMIT"] == "of-the-image"

    def test_nothing_given_leaves_the_environment(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
        with task("register", params=PARAMS, workspace=str(tmp_path)):
            assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:///mine.db"
            assert os.environ["PDNET_IMAGE"] == ""


class TestFootage:
    @pytest.fixture
    def md5(self, portraits, tmp_path) -> str:
        """A version that an earlier task has brought into the workspace."""
        shutil.copytree(portraits, tmp_path / "brought" / "data" / "mvps")
        md5 = folder_digest(tmp_path / "brought" / "data")[0]
        place = Task("data", tiny_config(), tmp_path).place_of(md5)
        place.parent.mkdir()
        (tmp_path / "brought").rename(place)
        (place / "data.dvc").write_text(yaml.safe_dump({"outs": [{"md5": md5, "path": "data"}]}))
        return md5

    def pointer(self, folder: Path, md5: str, remote: str = "") -> Path:
        container.write_pointer(folder / "dataset", md5=md5, revision="", remote=remote)
        return folder / "dataset"

    def test_what_is_there_is_not_brought_again(self, md5, tmp_path):
        run = Task("train", tiny_config(), tmp_path)
        footage = run.footage(self.pointer(tmp_path, md5, remote="/no/such/remote"), md5)
        assert footage == (run.place_of(md5) / "data/mvps", run.place_of(md5) / "data/mvps/Stills")
        assert (footage.videos / "ImageSets" / "train.txt").is_file()

    def test_a_pointer_to_another_version(self, md5, tmp_path):
        with pytest.raises(DataError, match=rf"dataset: names data version {'0' * 32}.dir, expected {md5}"):
            Task("train", tiny_config(), tmp_path).footage(self.pointer(tmp_path, "0" * 32 + ".dir"), md5)

    def test_a_version_that_is_nowhere(self, tmp_path, monkeypatch):
        monkeypatch.delenv("PDNET_DVC_CACHE", raising=False)
        md5 = "0" * 32 + ".dir"
        with pytest.raises(DataError, match="not in the DVC remote"):
            Task("train", tiny_config(), tmp_path).footage(self.pointer(tmp_path, md5, remote=f"{tmp_path}/no"), md5)

    @pytest.mark.parametrize("path", ["/data/mvps", "footage/mvps", "data/../mvps", "../data/mvps", "mvps/data"])
    @pytest.mark.parametrize("key", ["videos", "images"])
    def test_data_outside_the_data_set(self, md5, tmp_path, key, path):
        run = Task("train", tiny_config(data={key: path}), tmp_path)
        with pytest.raises(ConfigError, match=rf"data\.{key}: .*, expected a folder below data/"):
            run.footage(self.pointer(tmp_path, md5), md5)


class TestProcesses:
    def test_a_failure_is_in_the_words_of_the_process_and_with_its_exit_code(self, portraits, tmp_path):
        training = Training(tmp_path, portraits, image_batch_size=3)
        process = training.started(2)
        said = process.communicate()[1]
        line = "train.image_batch_size: 3, expected a multiple of the 2 processes that share it"
        assert process.returncode == ConfigError.exit_code, said
        assert said.splitlines()[-1] == f"pdnet: error: train: {line}"
        assert "Traceback" not in said
        assert container.failures(training.workspace) == {"train": line}
        assert not training.out.exists()

    def test_one_process_is_this_one(self, tmp_path):
        seen = []
        run = Task("train", tiny_config(), tmp_path)
        for processes in (0, 1):
            run.launch(lambda **given: seen.append(given), processes=processes, out=tmp_path)
        assert seen == [{"out": tmp_path, "config": run.config}] * 2

    def test_what_processes_leave_in_their_logs(self, tmp_path):
        assert container.last_words(tmp_path) == (-1, "")
        for attempt, rank, text in (
            (0, 0, "pdnet: error: an older one\n"),
            (1, 0, "pdnet: reading\n"),
            (1, 1, "UserWarning: ü\npdnet: error: clip a: no frames\n"),
        ):
            log = tmp_path / "none_abc" / f"attempt_{attempt}" / str(rank) / "stderr.log"
            log.parent.mkdir(parents=True)
            log.write_bytes(b"\xff" + b"\n" + text.encode())
            os.utime(log, (1000 + attempt, 1000 + attempt))
        assert container.last_words(tmp_path) == (1, "clip a: no frames")

    @pytest.mark.parametrize(
        ("does", "code", "told"),
        [
            ('[ "$RANK" = 0 ] && exit 7; exec sleep 60', 7, "process 0 of 2 ended with exit code 7"),
            ('[ "$RANK" = 1 ] && ulimit -t 0; while :; do :; done', 128 + 9, "process 1 of 2 ended with SIGKILL"),
        ],
        ids=["exit code", "signal"],
    )
    def test_a_process_that_dies_without_a_word(self, tmp_path, monkeypatch, does, code, told):
        monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "")  # is set
        command = ["--no-python", "sh", "-c", does]
        with ThreadPoolExecutor() as pool:  # where torch leaves the signals alone
            run = pool.submit(container.run_in_processes, 2, command, logs=tmp_path / "logs")
            with pytest.raises(PDNetError) as ended:
                run.result()
        assert (ended.value.exit_code, str(ended.value)) == (code, f"{told}; what it said is above")

    @pytest.mark.slow
    def test_a_task_that_is_told_to_stop_goes_on_when_it_is_retried(self, portraits, tmp_path):
        for name in ("whole", "stopped"):
            (tmp_path / name).mkdir()
        whole = Training(tmp_path / "whole", portraits)
        whole.run(2)
        stopped = Training(tmp_path / "stopped", portraits)
        process = stopped.started(2)
        while not list(stopped.workspace.glob("checkpoints/train/step-*")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGTERM)  # only the first process of a container is told
        said = process.communicate()[1]
        assert process.returncode == PDNetError.exit_code, said
        assert not stopped.out.exists()
        (line,) = container.failures(stopped.workspace).values()
        assert said.splitlines()[-1] == f"pdnet: error: train: {line}"
        process = stopped.started(2)
        said = process.communicate()[1]
        assert process.returncode == 0, said
        assert "goes on after" in said
        assert not container.failures(stopped.workspace)
        models = [(training.out / "model.safetensors").read_bytes() for training in (whole, stopped)]
        assert models[0] == models[1]


@pytest.fixture(scope="module")
def evaluated(portraits, tmp_path_factory) -> Path:
    """What the evaluate task leaves."""
    root = tmp_path_factory.mktemp("evaluated")
    (root / "model").mkdir()
    save_model(root / "model" / "model.safetensors", decided_network())
    (root / "model" / "run.json").write_text(json.dumps({"step": "train", "data": {}, "parents": {}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PDNET_GIT_COMMIT", "")
        patch.setenv("PDNET_IMAGE", "")
        with task("evaluate", params=PARAMS, workspace=str(root), code="1234abcd", image="pdnet@sha256:1") as run:
            evaluate(videos=portraits, model=root / "model", out=root / "out", config=run.config)
    return root / "out"


class TestWhatPeopleRead:
    def test_whence_an_artifact_came_and_its_figures(self, evaluated, portraits):
        facts = container.headline(evaluated)
        scores = json.loads((evaluated / "scores.json").read_text())
        assert facts["step"] == "evaluate"
        assert facts["videos_md5"] == folder_digest(portraits)[0]
        assert (facts["git_commit"], facts["image"]) == ("1234abcd", "pdnet@sha256:1")
        assert facts["J&F"] == pytest.approx(100 * scores["jf_mean"], abs=0.005)
        assert "data_dvc" not in facts  # not known here
        json.dumps(facts, allow_nan=False)

    def test_figures_are_in_percent_and_frames_per_second(self, evaluated):
        scores = json.loads((evaluated / "scores.json").read_text())
        figures = container.figures(evaluated)
        assert list(figures) == ["J&F", "J mean", "J recall", "F mean", "F recall", "FPS network", "FPS end to end"]
        assert figures["J mean"] == pytest.approx(100 * scores["j"]["mean"], abs=0.005)
        assert figures["F recall"] == pytest.approx(100 * scores["f"]["recall"], abs=0.005)
        assert figures["FPS end to end"] == pytest.approx(scores["speed"]["end_to_end_fps"], abs=0.005)

    def test_the_confusion_matrix_is_that_of_the_masks(self, evaluated, portraits):
        counts = np.zeros((2, 2), int)
        for path in (evaluated / "masks").rglob("*.png"):
            truth = portraits / "Annotations" / "480p" / path.relative_to(evaluated / "masks")
            true, predicted = (np.asarray(Image.open(image)) > 127 for image in (truth, path))
            for row in (0, 1):
                for column in (0, 1):
                    counts[row, column] += int(((true == row) & (predicted == column)).sum())
        assert counts.sum() == 6 * 72 * 96
        assert container.confusion(evaluated) == (["background", "portrait"], counts.tolist())

    def test_every_engine_has_its_score(self, evaluated, tmp_path):
        shutil.copy(evaluated / "run.json", tmp_path / "run.json")
        parity = {"torch": {"jf_mean": 0.86}, "onnx": {"jf_mean": 0.8599}, "sha256": "ab" * 32, "opset": 18}
        (tmp_path / "parity.json").write_text(json.dumps(parity))
        facts = container.headline(tmp_path)
        assert {name: facts[name] for name in facts if name.startswith("J&F")} == {"J&F torch": 86.0, "J&F onnx": 85.99}
        assert facts["sha256"] == "ab" * 32
        (tmp_path / "parity.json").write_text(json.dumps(parity | {"tensorrt": {"jf_mean": 0.8512}}))
        assert container.headline(tmp_path)["J&F tensorrt"] == 85.12

    def test_the_card_says_what_was_registered(self, tmp_path):
        facts: dict[str, Any] = {
            "model": "pdnet",
            "version": "7",
            "experiment": "nightly",
            "run_id": "abc",
            "model_uri": "models:/pdnet/7",
        }
        (tmp_path / "registration.json").write_text(json.dumps(facts))
        card = container.registration_card(tmp_path)
        assert card.splitlines() == [
            "# pdnet, version 7",
            "",
            "- experiment: nightly",
            "- run: `abc`",
            '- load it: `mlflow.pyfunc.load_model("models:/pdnet/7")`',
        ]
        for promoted, verdict in ((True, "promoted to champion"), (False, "not promoted")):
            decision = {"promoted": promoted, "reasons": ["J&F 80.0, expected at least 90.0", "no champion yet"]}
            (tmp_path / "registration.json").write_text(json.dumps(facts | {"promotion": decision}))
            last = container.registration_card(tmp_path).splitlines()[-1]
            assert last == f"- {verdict}: J&F 80.0, expected at least 90.0; no champion yet"

    def test_a_parameter_that_is_text_is_a_file_where_there_is_one(self, tmp_path):
        run = Task("register", tiny_config(), tmp_path)
        assert run.file("promotion.yaml", " \n") is None
        path = run.file("promotion.yaml", "min_jf: 90\n")
        assert path == tmp_path / "promotion.yaml"
        assert path.read_text() == "min_jf: 90\n"


def test_a_failure_is_recorded_whatever_the_parameters_are(tmp_path):
    """The exit handler has to tell of just that."""
    with task("outcome", params="foo", workspace=str(tmp_path), experiment="broken", tolerant=True) as run:
        assert run.config.tracking.experiment == "broken"
    with pytest.raises(SystemExit), task("train", params="foo", workspace=str(tmp_path)):
        pass
