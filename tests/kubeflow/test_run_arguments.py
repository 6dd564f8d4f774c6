"""What is refused before a run starts, and what the project says where nothing was typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pipeline_file import ROOT
from project_copy import IDENTITY
from tiny_profile import tiny_config

pytest.importorskip("kfp")
sys.path.insert(0, str(ROOT))

from pdnet.errors import ConfigError, DataError
from pipelines.run import (
    Place,
    check,
    code_version,
    data_version,
    overrides,
    parser,
    pipeline_arguments,
    tracking_uri,
)

MD5 = "0123456789abcdef0123456789abcdef.dir"
DIGEST = "registry/pdnet@sha256:" + "0" * 64
GIVEN: dict[str, Any] = {
    "data_md5": MD5,
    "data_remote": "s3://bucket/data",
    "image": DIGEST,
    "mlflow_uri": "http://mlflow.pdnet:5000",
    "gpus": 1,
}


def place(runner: str, root: Path = Path("/project")) -> Place:
    return Place(root, runner, None, None, None, wait=False, cache=True)


@pytest.mark.parametrize("runner", ["local", "docker", "cluster"])
def test_a_whole_set_of_arguments_is_accepted(runner):
    check(GIVEN, place(runner), tiny_config())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("epochs=3", "the pipeline has no parameter 'epochs'"),
        ("gpu=1", "did you mean 'gpus'?"),
        ("gpus", "'gpus': expected key=value"),
        ("gpus=two", "gpus=two: expected int"),
        ("gpus=true", "gpus=true: expected int"),
        ("gpu_type={a", "gpu_type={a: expected dict"),
        ("tensorrt=1", "tensorrt=1: expected bool"),
        ("params=foo", "params: is the text of a file; give the file, --params FILE"),
        ("promotion_policy=foo", "--policy FILE"),
        ("export_bounds=foo", "--bounds FILE"),
    ],
)
def test_a_wrong_word_is_refused(word, message):
    with pytest.raises(ConfigError, match=r".") as error:
        overrides([word])
    assert message in str(error.value)


def test_words_take_the_types_of_the_pipeline():
    assert overrides(["gpus=2", "gpu_type={a: b}", "tensorrt=true", "experiment=2026=x"]) == {
        "gpus": 2,
        "gpu_type": {"a": "b"},
        "tensorrt": True,
        "experiment": "2026=x",
    }


@pytest.mark.parametrize(
    ("runner", "changes", "message"),
    [
        ("local", {"gpus": -1}, "gpus=-1: expected at least 0"),
        ("local", {"nodes": 2}, "several nodes need a cluster"),
        ("local", {"data_md5": "zzz"}, "data_md5=zzz: expected <32 hex digits>.dir"),
        ("local", {"gpu_type": {"a": 1}}, "expected labels, which are text"),
        ("local", {"tolerations": [1]}, "expected a list as in a pod's specification"),
        ("docker", {"gpus": 3}, "pretrain.batch_size: 5, expected a multiple of the 3 processes"),
        ("cluster", {"nodes": 5}, "train.batch_size: 4, expected a multiple of the 5 processes"),
        ("cluster", {"image": "pdnet:cpu"}, "image: 'pdnet:cpu', expected an image by digest"),
        ("cluster", {"tensorrt": True}, "tensorrt_image: none given, expected an image by digest"),
        ("cluster", {"mlflow_uri": "https://me:secret@mlflow"}, "mlflow_uri: holds a password"),
        ("cluster", {"mlflow_uri": "sqlite:///mlflow.db"}, "a store of this machine"),
        ("cluster", {"mlflow_uri": "http://localhost:5000"}, "a store of this machine"),
        ("cluster", {"data_remote": ""}, "no DVC remote for pods to read"),
        ("cluster", {"data_remote": "/mnt/data"}, "is a folder here, which pods cannot read"),
    ],
)
def test_what_could_only_fail_later_is_refused(runner, changes, message):
    with pytest.raises((ConfigError, DataError)) as error:
        check(GIVEN | changes, place(runner), tiny_config())
    assert message in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", ""),
        ("sqlite:///mlflow.db", "sqlite:////project/mlflow.db"),
        ("sqlite:////elsewhere/mlflow.db", "sqlite:////elsewhere/mlflow.db"),
        ("http://mlflow:5000", "http://mlflow:5000"),
    ],
)
def test_a_store_in_a_file_is_named_by_its_whole_path(monkeypatch, given, found):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert tracking_uri(place("docker")) == found


def given(*words: str) -> dict[str, Any]:
    return pipeline_arguments(parser("kfp").parse_intermixed_args(words), place("local", ROOT))


def test_files_reach_the_pipeline_as_text():
    policy, bounds = (ROOT / "configs" / f"{name}.yaml" for name in ("promotion", "export"))
    found = given("--policy", str(policy), "--bounds", str(bounds))
    assert found["promotion_policy"] == policy.read_text()
    assert found["export_bounds"] == bounds.read_text()
    assert not {"promotion_policy", "export_bounds"} & set(given())


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--policy", "margn: 1", "unknown key 'margn'; did you mean 'margin'?"),
        ("--bounds", "fp23: {}", "unknown key 'fp23'; did you mean 'fp32'?"),
        ("--bounds", "fp32: {max_jf_difference: 0.1}", "fp32: lacks max_probability_difference"),
        ("--bounds", None, "no such file; expected the bounds of parity as YAML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, option, text, message):
    path = tmp_path / "own.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as error:
        given(option, str(path))
    assert str(error.value).startswith(f"{path}: {message}")


class TestRevisions:
    @pytest.fixture
    def repository(self, tmp_path: Path) -> Path:
        subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
        (tmp_path / "pdnet").mkdir()
        (tmp_path / "pdnet" / "code.py").write_text("1\n")
        self.write(tmp_path, MD5)
        return tmp_path

    def write(self, root: Path, md5: str) -> None:
        (root / "data.dvc").write_text(f"outs:\n- md5: {md5}\n  path: data\n")

    def commit(self, root: Path) -> str:
        subprocess.run(["git", "-C", root, "add", "."], check=True)
        subprocess.run(["git", "-C", root, *IDENTITY, "commit", "--quiet", "-m", "x"], check=True)
        run = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
        return run.stdout.strip()

    def test_data_that_are_not_committed_have_no_revision(self, repository):
        assert data_version(repository, None) == (MD5, "")
        commit = self.commit(repository)
        assert data_version(repository, None) == (MD5, commit)
        self.write(repository, "f" * 32 + ".dir")
        assert data_version(repository, None) == ("f" * 32 + ".dir", "")
        assert data_version(repository, "HEAD") == (MD5, commit)

    def test_an_unknown_revision_is_refused(self, repository):
        self.commit(repository)
        with pytest.raises(DataError, match="no such revision"):
            data_version(repository, "v9")
        with pytest.raises(DataError, match=r"missing or not a DVC file"):
            data_version(repository / "pdnet", None)

    def test_code_that_was_changed_is_told_by_a_digest(self, repository):
        commit = self.commit(repository)
        assert code_version(repository) == commit
        (repository / "pdnet" / "code.py").write_text("2\n")
        changed = code_version(repository)
        assert changed.startswith(f"{commit}-dirty.")
        (repository / "pdnet" / "code.py").write_text("3\n")
        assert code_version(repository) != changed
