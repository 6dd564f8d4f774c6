"""The connection to an MLflow store: which one, quietly, and with one clear line when it fails."""

from __future__ import annotations

import contextlib
import errno
import getpass
import logging
import os
import re
import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from pdnet.errors import PDNetError, TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_DEFAULT_URI = "sqlite:///mlflow.db"

_LONGEST_REASON = 300
#: `user:password@` of an address, also where the password has an @ or, against the rules, a slash in it.
_ACCOUNT = re.compile(r"(?<=://)(?:[^/\s]*@|[^/@\s]*:(?!\d)\S*@)")
_METRICS_PER_CALL = 1000
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
#: MLflow's own words stay out of the terminal, and nothing is told to its makers.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it prints the user's password with it
}
#: MLflow's defaults wait for minutes. The first call finds out within seconds whether a server is there; later ones
#: ride out a restart of some seconds.
_FIRST_CALL = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
_LATER_CALLS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1"}

logger = logging.getLogger(__name__)


class Store(NamedTuple):
    """An MLflow store that has answered.

    Attributes:
        client: speaks to it.
        uri: as the user gave it, without user name and password.
        artifact_location: where a new experiment keeps its files; None leaves it to the store.
    """

    client: MlflowClient
    uri: str
    artifact_location: str | None


def store_uri() -> str:
    """MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` in the working folder; may hold a password."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _DEFAULT_URI


def store_identity() -> str:
    """The store as it is named beside what is meant for it: without secrets, and the same from any working folder."""
    uri = public_uri(store_uri())
    path = uri.removeprefix("sqlite:///")
    return f"sqlite:///{Path(path).absolute()}" if path not in ("", uri) else uri


def experiment_id(store: Store, name: str) -> str:
    """The id of the experiment, made where it is new."""
    if (found := store.client.get_experiment_by_name(name)) is not None:
        return str(found.experiment_id)
    from mlflow.exceptions import MlflowException

    try:
        return str(store.client.create_experiment(name, artifact_location=store.artifact_location))
    except MlflowException:
        if (found := store.client.get_experiment_by_name(name)) is None:  # else another run was faster
            raise
        return str(found.experiment_id)


def log_metrics(client: MlflowClient, run_id: str, metrics: Iterable[Metric]) -> int:
    """Log any number of metrics, in calls of the size that servers accept; how many there were."""
    remaining, count = iter(metrics), 0
    while batch := list(islice(remaining, _METRICS_PER_CALL)):
        client.log_batch(run_id, metrics=batch)
        count += len(batch)
    return count


def is_denied(error: BaseException) -> bool:
    """Whether a server refused for lack of rights; a call for files says that otherwise than the others."""
    response = getattr(error, "response", None)
    return getattr(error, "error_code", "") == "PERMISSION_DENIED" or getattr(response, "status_code", 0) == 403


def origin_tags() -> dict[str, str]:
    """Who makes a run, and the run that it belongs to: Kubeflow's MLflow plugin names that in MLFLOW_RUN_ID."""
    tags = {"mlflow.source.type": "LOCAL"}
    with contextlib.suppress(KeyError, OSError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    if parent := os.environ.get("MLFLOW_RUN_ID"):
        tags["mlflow.parentRunId"] = parent
    return tags


@contextlib.contextmanager
def open_store(*, write: bool = True) -> Iterator[Store]:
    """Yield the store at `store_uri`.

    A new SQLite file gets its tables here, which takes some seconds. With SQLite, the files of a new experiment go to
    the folder `mlartifacts` beside the database. Environment and loggers are as before when the block ends; what users
    have set themselves (`MLFLOW_HTTP_REQUEST_TIMEOUT`, ...) is respected.

    Args:
        write: whether the block writes; if not, no file is made, and one that may only be read will do.

    Raises:
        TrackingError: the store does not answer or refuses a call of the block.
    """
    given = store_uri()
    public = public_uri(given)
    with _environment(_QUIET), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow

        with _silent_loggers(), _restored_tracking_uri(), _clear_errors(public):
            uri, artifact_location = given, None
            scheme = urlsplit(given).scheme.split("+")[0]
            if scheme == "file" or (not scheme and given != "databricks"):
                expected = "expected sqlite:///FILE or http://SERVER"
                raise TrackingError(f"MLFLOW_TRACKING_URI={public}: MLflow keeps runs in a folder no more; {expected}")
            if scheme in _DATABASES:
                uri, artifact_location = _check_database(given, write=write)
            # Registering a version asks the process-wide store for the model, whatever client is used.
            mlflow.set_tracking_uri(uri)
            client = mlflow.MlflowClient(uri)
            with _environment(_FIRST_CALL):
                client.search_experiments(max_results=1)
            with _environment(_LATER_CALLS):
                yield Store(client, public, artifact_location)


def public_uri(uri: str) -> str:
    """`uri` without user name, password and query."""
    return _ACCOUNT.sub("", uri).partition("?")[0]


def _check_database(uri: str, *, write: bool) -> tuple[str, str | None]:
    """See that the database can be opened, and written if it is a file; MLflow itself retries for minutes.

    Returns:
        The URI with an absolute path (MLflow keeps connections by URI, a working folder may change) and, for a file,
        the artifact folder beside it.
    """
    import sqlalchemy

    url, artifact_location = sqlalchemy.make_url(uri), None
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite and url.database and not url.database.startswith((":", "file:")):
        path = Path(url.database).absolute()
        if not path.exists() and not write:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if not path.exists():
            logger.info("preparing a new MLflow store in %s", path)
            _make_database(path)
        uri, artifact_location = f"sqlite:///{path}", (path.parent / "mlartifacts").as_uri()
    engine = sqlalchemy.create_engine(uri)
    try:
        with engine.connect() as connection:
            if is_sqlite and write:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                connection.exec_driver_sql("CREATE TABLE pdnet_may_write (x)")  # closing rolls it back
    finally:
        engine.dispose()
    return uri, artifact_location


def _make_database(path: Path) -> None:
    """Make an SQLite database with MLflow's tables, whole or not at all.

    MLflow's 67 migrations sync the disk a thousand times, which takes a minute on a busy one. They are run on a
    scratch file that need not survive a crash; the finished file is then put into place.
    """
    import mlflow
    from sqlalchemy import event
    from sqlalchemy.pool import Pool

    def unsafe_but_fast(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = MEMORY")

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch, "mlflow.db")
        event.listen(Pool, "connect", unsafe_but_fast)
        try:
            mlflow.MlflowClient(f"sqlite:///{fresh}").search_experiments(max_results=1)
        finally:
            event.remove(Pool, "connect", unsafe_but_fast)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            shutil.copyfile(fresh, beside)
            with contextlib.suppress(FileExistsError):  # another process was faster, and may have written into it
                os.link(beside, path)
        finally:
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def _clear_errors(uri: str) -> Iterator[None]:
    """Turn whatever the block raises into a TrackingError: stores are plug-ins with errors of many kinds."""
    try:
        yield
    except PDNetError:
        raise
    except Exception as error:
        raise TrackingError(f"MLflow at {uri}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """One line, without secrets: what the system or the database said underneath, else the message's first line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TimeoutError):
            return "no answer in time; is MLFLOW_TRACKING_URI right?"
        if isinstance(cause, OSError) and cause.strerror:
            hint = (
                f": {cause.filename}"
                if cause.filename
                else "; is MLFLOW_TRACKING_URI right, and a server running there?"
            )
            return cause.strerror + hint
        error = getattr(cause, "orig", None) or error
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = _ACCOUNT.sub("", re.sub(r"^\([\w.]+\) ", "", lines[0]))
    return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 1] + "…"


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables that are not set yet, and remove them again."""
    ours = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _silent_loggers() -> Iterator[None]:
    """Keep MLflow, its database migrations and connection retries from the terminal: errors are raised anyway."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "sqlalchemy.engine", "urllib3")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


@contextlib.contextmanager
def _restored_tracking_uri() -> Iterator[None]:
    """Leave MLflow's process-wide store as it was; setting it sets the environment variable too."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
