"""A journal becomes an MLflow run: found by its tag, so that nothing has to be remembered beside the journal."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pdnet.errors import DataError, TrackingError
from pdnet.tracking.journal import Header, Journal, buffer_folder
from pdnet.tracking.store import Store, experiment_id, log_metrics, open_store, store_identity

if TYPE_CHECKING:
    from mlflow.entities import Metric

#: The tag that names the training of a run.
TRAINING_TAG = "pdnet.training"
#: Metrics of the machine, as MLflow's own are called.
SYSTEM = "system/"
#: How long the rest may take to send when a training has ended, seconds: a pod has 30 from SIGTERM on.
DRAIN_SECONDS = 20
#: How a line ends that says that something is not there yet.
LATER = "`pdnet track sync` sends it later"

logger = logging.getLogger("pdnet.tracking")


class Delivery(NamedTuple):
    """What was sent of one journal.

    Attributes:
        run_id: the run.
        experiment: its id.
        points: values sent.
        status: of the run when it was left.
    """

    run_id: str
    experiment: str
    points: int
    status: str


def deliver(
    store: Store,
    journal: Journal,
    *,
    waiting: Callable[[], bool] = lambda: False,
    opened: Callable[[str], None] | None = None,
) -> Delivery:
    """Send a journal, end its run as it says, and remove it.

    May be done again at any time: what the run holds is not sent again, and MLflow drops what it is sent twice. Not by
    two processes at once, which might both make the run: hence the lock.

    A training that says nothing of its end was killed. The run of one that another process goes on with is not ended,
    nor is a run that somebody else made.

    Args:
        store: where to.
        journal: locked by this process, or followed for the one that writes it and holds the lock.
        waiting: waits for more; False when nobody writes any longer.
        opened: told the id of the run.
    """
    run = _Run(store, journal.header)
    if opened is not None:
        opened(run.id)
    journal.rewind()
    points, going = 0, True
    while going:
        going = waiting()
        points += run.send(journal)
        going = going and journal.end is None
    status = run.status
    if journal.header.run_id is None and journal.siblings()[-1:] == [journal.path]:
        status = journal.end or "KILLED"
        store.client.set_terminated(run.id, status, journal.last)
    journal.path.unlink(missing_ok=True)
    return Delivery(run.id, run.experiment, points, status)


def deliver_before(store: Store, journal: Journal) -> None:
    """Send what earlier processes of this training left for this store: points have to come in their order.

    One that somebody else is sending is waited for, at most `DRAIN_SECONDS`, and then left to them.
    """
    for path in journal.siblings():
        if path.name < journal.path.name:
            with contextlib.suppress(DataError), contextlib.closing(Journal(path)) as earlier:
                if earlier.header.store == journal.header.store and _lock_in_time(earlier):
                    deliver(store, earlier)


def _lock_in_time(journal: Journal) -> bool:
    deadline = time.monotonic() + DRAIN_SECONDS
    while not journal.lock():
        if not journal.path.exists() or time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


class _Run:
    """The MLflow run of a training, found or made, and RUNNING.

    Attributes:
        id: of the run.
        experiment: id of its experiment.
        status: of a run that is not ours to end: as it was found.
    """

    def __init__(self, store: Store, header: Header) -> None:
        client = self._client = store.client
        self.id = header.run_id or self._found(store, header) or self._made(store, header)
        run = client.get_run(self.id)
        self.experiment, self.status = str(run.info.experiment_id), str(run.info.status)
        self._newest = {metric.key: metric for metric in run.data.to_proto().metrics}
        if header.run_id:
            for name, value in header.tags.items():
                if not name.startswith("mlflow.") and run.data.tags.get(name) != value:
                    client.set_tag(self.id, name, value)
        elif self.status != "RUNNING":
            self.status = "RUNNING"
            client.update_run(self.id, self.status)

    @staticmethod
    def _found(store: Store, header: Header) -> str | None:
        which = f"tags.`{TRAINING_TAG}` = '{header.training}'"
        runs = store.client.search_runs([experiment_id(store, header.experiment)], which, max_results=1)
        return str(runs[0].info.run_id) if runs else None

    @staticmethod
    def _made(store: Store, header: Header) -> str:
        experiment = experiment_id(store, header.experiment)
        run = store.client.create_run(experiment, header.started, header.tags, run_name=header.step)
        return str(run.info.run_id)

    def send(self, journal: Journal) -> int:
        """Send what was written since the last call; the number of values."""
        return log_metrics(self._client, self.id, self._missing(journal))

    def _missing(self, journal: Journal) -> Iterator[Metric]:
        """The values that the run did not hold when it was opened.

        An iteration that was done again, after a kill and from a checkpoint before it, is there already.
        """
        from mlflow.entities import Metric

        for entry in journal.read():
            for name, value in entry["metrics"].items():
                newest = self._newest.get(name)
                mark, newest_mark = ("time", "timestamp") if name.startswith(SYSTEM) else ("step", "step")
                if newest is None or entry[mark] > getattr(newest, newest_mark):
                    yield Metric(name, value, entry["time"], entry["step"])


class Result(NamedTuple):
    """What became of a journal: in words, and whether it waits for somebody to do something."""

    line: str
    waits: bool = False


def sync(buffer: Path | None = None) -> Iterator[Result]:
    """Send every journal in a folder to the store at `store_uri`, and say of each what became of it.

    A journal that is refused holds up none but later ones of its training; one of another store is left alone.

    Raises:
        TrackingError: the store does not answer, or, when all was said, it refused some; what was not sent stays.
    """
    folder = buffer or buffer_folder()
    if not (paths := _files(folder)):
        yield Result(f"{folder}: nothing to send")
        return
    with open_store():  # else each journal would wait for it
        pass
    refused: list[str] = []
    for path in paths:
        training, reason = path.stem.rpartition("-")[0], ""
        if training in refused:  # sent first, it would make the run seem to hold what came before
            reason = "its training recorded something before it that has to be sent first"
        else:
            try:
                yield _sync_one(path)
            except TrackingError as error:
                reason = str(error)
        if reason:
            refused.append(training)
            yield Result(f"{path}: not sent: {reason}", waits=True)
    if refused:
        raise TrackingError(f"{folder}: {len(refused)} of {len(paths)} recordings could not be sent and stay there")


def send_leftovers() -> None:
    """Send what the trainings of this pipeline run could not, before their folder goes with the run.

    For a later step. Never raises; one warning where something stays.
    """
    folder, reason, waiting = buffer_folder(), "", 0
    try:
        for result in sync(folder):
            waiting += result.waits
            logger.debug("%s", result.line)
    except Exception as error:
        reason = f": {error}"
        with contextlib.suppress(OSError):
            waiting = waiting or len(_files(folder))
    if waiting:
        logger.warning("%s: holds what MLflow did not get (files: %d); %s%s", folder, waiting, LATER, reason)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_file())


def _sync_one(path: Path) -> Result:
    try:
        journal = Journal(path)
    except DataError as error:
        return Result(str(error), waits=True)
    with contextlib.closing(journal):
        if (named := store_identity()) != journal.header.store:
            other = f"{path}: left alone: it is for MLflow at {journal.header.store}, this is {named}"
            return Result(other, waits=True)
        if not journal.lock():
            return Result(f"{path}: left alone: its training is running, or somebody else is sending it")
        with open_store() as store:
            done = deliver(store, journal)
    where = f"run {done.run_id} of experiment {journal.header.experiment} at {store.uri}"
    if store.uri.startswith("http"):
        where = f"{store.uri}/#/experiments/{done.experiment}/runs/{done.run_id}"
    return Result(f"{path}: {journal.header.step}, {done.points} values sent, {done.status}: {where}")
