"""What a step says of the data that it read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pdnet.steps.run_record import data_version

MD5 = "0123456789abcdef0123456789abcdef.dir"
IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@example.org")


def git(root: Path, *arguments: str) -> str:
    run = subprocess.run(["git", "-C", str(root), *IDENTITY, *arguments], capture_output=True, text=True, check=True)
    return run.stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "data" / "mvps").mkdir(parents=True)
    (tmp_path / "data.dvc").write_text(f"outs:\n- md5: {MD5}\n  path: data\n")
    return tmp_path


def test_the_revision_is_the_commit_that_holds_data_dvc(project: Path) -> None:
    videos = project / "data" / "mvps"
    assert data_version(videos) == (MD5, None)  # no repository
    git(project, "init", "--quiet")
    assert data_version(videos) == (MD5, None)  # not tracked
    git(project, "add", "data.dvc")
    git(project, "commit", "--quiet", "-m", "data")
    commit = git(project, "rev-parse", "HEAD")
    assert data_version(videos) == (MD5, commit)
    (project / "data.dvc").write_text(f"outs:\n- md5: {'f' * 32}.dir\n  path: data\n")
    assert data_version(videos) == ("f" * 32 + ".dir", None)  # changed since


def test_a_revision_that_data_dvc_notes_itself_counts(project: Path) -> None:
    (project / "data.dvc").write_text(f"outs:\n- md5: {MD5}\n  path: data\nmeta:\n  revision: v3\n")
    assert data_version(project / "data" / "mvps") == (MD5, "v3")


def test_a_folder_beside_the_data_has_no_version(project: Path) -> None:
    (project / "other").mkdir()
    assert data_version(project / "other") == (None, None)
