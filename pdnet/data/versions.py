"""A version of the data set, named by the MD5 that its `data.dvc` holds, brought to where it is read."""

from __future__ import annotations

import configparser
import fcntl
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from pdnet.errors import DataError, UnavailableError
from pdnet.files import folder_digest, read_json, write_text

logger = logging.getLogger("pdnet.data")

#: What DVC calls the data in its file.
FOLDER = "data"
#: Names a DVC cache that outlives a run; the versions in it need no remote.
CACHE = "PDNET_DVC_CACHE"
#: How data.dvc names a version.
MD5 = re.compile(r"[0-9a-f]{32}\.dir")


def materialise(md5: str, out: Path, *, remote: str = "", revision: str = "") -> None:
    """Bring a version of the data set from the DVC remote: `out/data/` and the `out/data.dvc` that names it.

    A version that is there already is left alone. A new one appears whole or not at all; of two processes that
    bring the same one, the second waits for the first. What a process that was killed had fetched is not fetched
    again.

    Args:
        md5: of the data folder, as data.dvc gives it (`<32 hex digits>.dir`).
        out: folder to make.
        remote: URL of the DVC remote; may be empty where the cache that PDNET_DVC_CACHE names holds the version.
        revision: the git revision that tracks this version; kept in `out/data.dvc`.

    Raises:
        DataError: no such version there, no access, or what came is not what the MD5 says.
        UnavailableError: DVC is not installed.
    """
    if not MD5.fullmatch(md5):
        raise DataError(f"data version '{md5}': expected the MD5 of a folder as data.dvc gives it, <32 hex digits>.dir")
    if _holds(out, md5):
        return
    if importlib.util.find_spec("dvc") is None:
        raise UnavailableError(
            "the package 'dvc' is not installed, which brings the data; pip install 'pdnet[pipeline]'"
        )
    out = out.resolve()  # behind a link: the link stays
    out.parent.mkdir(parents=True, exist_ok=True)
    with _alone(out.with_name(f".{out.name}.lock")):
        if _holds(out, md5):  # another process has brought it
            return
        partial = out.with_name(f".{out.name}.part")
        try:
            _bring(partial, md5, remote, revision)
            (partial / "project").replace(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def tracked_version(path: Path) -> tuple[str | None, str | None]:
    """What a `.dvc` file tracks, as (MD5, git revision noted in it); None for what it does not say."""
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        md5, revision = content["outs"][0]["md5"], (content.get("meta") or {}).get("revision")
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError, AttributeError, UnicodeDecodeError):
        return None, None
    return str(md5), None if revision is None else str(revision)


def _holds(out: Path, md5: str) -> bool:
    """Whether a version is there.

    Raises:
        DataError: something else is.
    """
    if tracked_version(out / "data.dvc")[0] == md5:
        return True
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out}: holds other files; expected a new or empty folder, or data version {md5}")
    return False


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Keep other processes out of the block, on whatever machine they run, until it or this process ends."""
    while True:
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("%s: waits for another process that brings the same data", lock)
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(lock, file.fileno()):  # whoever had it before has removed it
                continue
            try:
                yield
            finally:
                lock.unlink()
            return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _bring(partial: Path, md5: str, remote: str, revision: str) -> None:
    """Make `partial/project` a folder of this one version.

    Args:
        partial: what is in its `cache` is not fetched again.
        md5, remote, revision: as in `materialise`.
    """
    project, named = partial / "project", os.environ.get(CACHE, "")
    shared = bool(named) and Path(named).is_dir()
    cache = Path(named).resolve() if shared else partial / "cache"
    places = [f"the cache {cache}"] * shared + [f"the DVC remote {remote}"] * bool(remote)
    logger.info("data version %s: from %s", md5, " and ".join(places) or "nowhere")
    shutil.rmtree(project, ignore_errors=True)
    _write_project(project, md5, remote, revision, cache, shared=shared)
    # botocore's standard mode tells after seconds, not after a minute, that nobody answers.
    environment = {"AWS_RETRY_MODE": "standard"} | os.environ
    environment |= {"DVC_SITE_CACHE_DIR": str(project / ".dvc" / "site"), "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", "pull"]
    run = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if run.returncode:
        raise DataError(f"data version {md5}: {_reason(run.stderr, md5, remote, cache)}")
    found = folder_digest(project / FOLDER)[0]
    if found != md5:
        where = " or ".join(places)
        raise DataError(
            f"data version {md5}: what came has MD5 {found}; objects are damaged in {where}: remove them there"
            " and `dvc push` again"
        )
    shutil.rmtree(project / ".dvc")


def _write_project(project: Path, md5: str, remote: str, revision: str, cache: Path, *, shared: bool) -> None:
    """Write what makes a folder a DVC project with one version of the data to pull."""
    config = configparser.ConfigParser(interpolation=None)
    config["core"] = {"no_scm": "true", "analytics": "false", "check_update": "false"}
    # Files of a cache that outlives the run must not change with the ones that are read.
    config["cache"] = {"dir": f'"{cache}"', "type": "reflink,copy" if shared else "reflink,hardlink,copy"}
    if remote:
        config["core"]["remote"] = "origin"
        config["'remote \"origin\"'"] = {"url": f'"{remote}"', "verify": "true"}
    (project / ".dvc").mkdir(parents=True)
    with (project / ".dvc" / "config").open("w", encoding="utf-8") as file:
        config.write(file)
    tracked: dict[str, Any] = {"outs": [{"md5": md5, "hash": "md5", "path": FOLDER}]}
    if revision:
        tracked["meta"] = {"revision": revision}
    write_text(project / "data.dvc", yaml.safe_dump(tracked, sort_keys=False))


def _reason(told: str, md5: str, remote: str, cache: Path) -> str:
    """What DVC told on stderr, as one line."""
    source = f"the DVC remote {remote}" if remote else "the local cache, and no DVC remote is named"
    if "missing-files" in told:
        if not remote or "Missing cache files" in told:
            return f"not in {source}; `dvc push` puts it into a remote"
        # All is there, but DVC has taken only what is what its MD5 says.
        files = {entry["relpath"]: entry["md5"] for entry in read_json(cache / _object(md5))}
        name = next((name for name, of in files.items() if not (cache / _object(of)).is_file()), "")
        object_ = _object(files.get(name, md5))
        return f"damaged in {source}: {object_} ({FOLDER}/{name}); remove it there and `dvc push` again"
    errors = [line.partition(": ")[2] for line in told.splitlines() if line.startswith("ERROR: ")]
    reason = (errors or told.splitlines() or ["no reason given"])[0].removeprefix("unexpected error - ")
    return f"cannot be had from {source}: {reason}"


def _object(md5: str) -> str:
    """Where DVC keeps an object, in caches and remotes."""
    return f"files/md5/{md5[:2]}/{md5[2:]}"
