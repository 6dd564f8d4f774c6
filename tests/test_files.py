"""Files are written whole or not at all; folders have the digest that DVC gives them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pdnet.errors import DataError
from pdnet.files import (
    atomic_folder,
    atomic_path,
    file_digest,
    folder_digest,
    read_json,
    read_object,
    write_bytes,
    write_json,
    write_text,
)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_marked(target: Path, **files: str) -> None:
    with atomic_folder(target) as fresh:
        for name, text in files.items():
            (fresh / name).write_text(text)


def test_a_file_appears_under_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a.txt"
    with atomic_path(target) as fresh:
        fresh.write_text("half")
        assert not target.exists()
        assert fresh.name == "a.txt"  # libraries that go by the suffix see the right one
        fresh.write_text("whole")
    assert contents(tmp_path) == {"new/folder/a.txt": "whole"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as fresh:
        fresh.write_text("half")
        raise error
    assert contents(tmp_path) == {"a.txt": "old"}
    assert len(list(tmp_path.iterdir())) == 1


def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write_marked(target, old="1")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="in the middle"), atomic_folder(target) as fresh:
        (fresh / "deep").mkdir()
        (fresh / "deep" / "half").write_text("2")
        raise ValueError("in the middle")
    assert contents(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_block_that_writes_nothing_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(target):
        pass
    assert contents(tmp_path) == {"a.txt": "old"}


def test_a_block_that_writes_nothing_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write_marked(target, old="1")
    before = contents(tmp_path)
    with pytest.raises(FileNotFoundError), atomic_path(target):
        pass
    assert contents(tmp_path) == before


def test_a_folder_is_replaced_in_full(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write_marked(target, old="1", both="1")
    write_marked(target, new="2", both="2")
    assert {name for name in contents(target) if not name.startswith(".")} == {"new", "both"}
    assert (target / "both").read_text() == "2"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_marked(tmp_path / "out", new="1")
    assert (tmp_path / "out" / "new").read_text() == "1"


def test_a_folder_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk", target_is_directory=True)
    write_marked(tmp_path / "out", new="1")
    write_marked(tmp_path / "out", new="2")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "new").read_text() == "2"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_others_wrote_is_refused_and_not_touched(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "folder":
        (target / "deep").mkdir(parents=True)
        (target / "deep" / "thesis.txt").write_text("years of work")
    else:
        target.write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(DataError) as caught, atomic_folder(target):
        pytest.fail("the block must not run")
    what = "holds other files" if kind == "folder" else "a file"
    assert str(caught.value).startswith(f"{target}: {what}; expected a new or empty folder")
    assert contents(tmp_path) == before


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"), atomic_folder(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")


def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / "file").write_text("")
    write_marked(tmp_path / "ours", file="")
    for name in (".", "file"):
        assert (tmp_path / "ours" / name).stat().st_mode == (tmp_path / "usual" / name).stat().st_mode


def test_text_bytes_and_json(tmp_path: Path) -> None:
    write_text(tmp_path / "t", "Gesicht – 顔\n")
    write_bytes(tmp_path / "b", b"\x00\xff")
    write_json(tmp_path / "j", {"a": [1, None, "顔"]})
    assert (tmp_path / "t").read_text(encoding="utf-8") == "Gesicht – 顔\n"
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    assert read_json(tmp_path / "j") == {"a": [1, None, "顔"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "j", {"a": float("nan")})
    assert read_json(tmp_path / "j") == {"a": [1, None, "顔"]}


@pytest.mark.parametrize("damage", ["missing", "folder", "text", "binary"])
def test_json_that_cannot_be_read_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "run.json"
    if damage == "folder":
        path.mkdir()
    elif damage == "text":
        path.write_text("{'a': 1}")
    elif damage == "binary":
        path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "holds a list, expected an object"),
        ("3", "holds a int, expected an object"),
        ("{}", "lacks 'jf_mean'; found nothing"),
        ('{"jf_mean": null, "j": {}}', "lacks 'jf_mean'; found jf_mean, j"),
        ('{"jf_mean": 0, "speed": {"size": 192}}', "lacks 'speed.device'; found jf_mean, speed"),
        ('{"jf_mean": 0, "speed": "fast"}', "lacks 'speed.device'; found jf_mean, speed"),
    ],
)
def test_an_object_without_what_is_needed_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_object(path, ("jf_mean", "speed.device"))
    assert str(caught.value) == f"{path}: {message}"


def test_an_object_may_hold_more_than_is_needed(tmp_path: Path) -> None:
    content = {"jf_mean": 0, "speed": {"device": "", "size": 192}, "parts": None}
    write_json(tmp_path / "o.json", content)
    assert read_object(tmp_path / "o.json", ("jf_mean", "speed.device")) == content
    assert read_object(tmp_path / "o.json") == content


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_digest(tmp_path / "abc", "md5") == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321
    assert file_digest(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")  # FIPS 180-2


def test_folder_digest_is_what_dvc_computes(tmp_path: Path) -> None:
    data = tmp_path / "data"
    # Names whose order differs between paths, parts of paths and locales; hidden, empty and non-ASCII files.
    for name in ("a/b.txt", "a.txt", "a-b/c", "A", "a b", "ä/顔.png", "z/y/x/deep", ".hidden", "10", "9", "empty"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(b"" if name == "empty" else name.encode() * 3)
    (data / "no files here").mkdir()
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    dvc = str(Path(sys.executable).parent / "dvc")
    for command in (["git", "init", "-q"], [dvc, "init", "-q"], [dvc, "add", "-q", "data"]):
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    (recorded,) = yaml.safe_load((tmp_path / "data.dvc").read_text())["outs"]
    assert folder_digest(data) == (recorded["md5"], recorded["nfiles"], recorded["size"])
    (data / "a.txt").write_text("another")
    assert folder_digest(data)[0] != recorded["md5"]
