"""Files that are written whole or not at all, and their digests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pdnet.errors import DataError

_MARKER = ".pdnet"


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it onto `target` when the block ends well.

    The block writes a file or makes a folder at the yielded path. An existing folder at `target` is replaced in
    full by a new one. After an exception nothing is left and `target` is as it was.

    Raises:
        DataError: `target` cannot be written, or is a folder where the block wrote a file.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror})") from None
    try:
        fresh = holder / target.name
        yield fresh
        if target.is_dir() and fresh.is_file():  # the folder's content would be lost
            raise DataError(f"{target}: a folder; expected the path of a file to write")
        if target.is_dir() and not target.is_symlink():
            replaced = holder / "replaced"
            target.rename(replaced)
            try:
                fresh.replace(target)
            except BaseException:
                replaced.rename(target)
                raise
        else:
            fresh.replace(target)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """`atomic_path` for a folder: the yielded folder is empty but for the marker `.pdnet`.

    Raises:
        DataError: `target` is a file, or a folder with files that pdnet did not write: they would be lost.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise DataError(f"{target}: a file; expected a new or empty folder, or one that pdnet wrote")
    if target.exists() and not (target / _MARKER).is_file() and any(target.iterdir()):
        raise DataError(f"{target}: holds other files; expected a new or empty folder, or one that pdnet wrote")
    with atomic_path(target.resolve()) as fresh:  # behind a link: the link stays
        fresh.mkdir()
        (fresh / _MARKER).write_text("Written by pdnet as a whole; the next run replaces it.\n", encoding="utf-8")
        yield fresh


def require_writable(target: Path) -> None:
    """See that a file can be written at `target`, before work that would be in vain otherwise.

    Raises:
        DataError: it cannot, or is a folder.
    """
    if target.is_dir():
        raise DataError(f"{target}: a folder; expected the path of a file to write")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror})") from None


def write_text(target: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(target) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_bytes(target: Path, data: bytes) -> None:
    """Write `data`, whole or not at all."""
    with atomic_path(target) as fresh:
        fresh.write_bytes(data)


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline; NaN is refused with ValueError."""
    write_text(target, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None


def read_object(path: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Read a JSON object that holds a value for each of `keys`, dots for levels: `speed.device`.

    Raises:
        DataError: the file is missing or holds no JSON object, or a key is not there or null.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, expected an object")
    for key in keys:
        level: Any = content
        for name in key.split("."):
            level = level.get(name) if isinstance(level, dict) else None
        if level is None:
            raise DataError(f"{path}: lacks '{key}'; found {', '.join(content) or 'nothing'}")
    return content


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's content."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def folder_digest(root: Path) -> tuple[str, int, int]:
    """The MD5 that `dvc add` gives a folder, its number of files and its size in bytes.

    The digest is DVC's: the MD5 of the JSON list of `{"md5", "relpath"}` of every file, in order of path, so a
    figure reported with it can be traced to a `.dvc` file.
    """
    listing: list[dict[str, str]] = []
    size = 0
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            size += path.stat().st_size
            listing.append({"md5": file_digest(path, "md5"), "relpath": path.relative_to(root).as_posix()})
    listing.sort(key=lambda entry: entry["relpath"])
    text = json.dumps(listing, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir", len(listing), size
