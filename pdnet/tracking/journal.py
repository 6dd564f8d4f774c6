"""The journal of a training: what MLflow is to get, on disk first.

    <buffer>/<step>-<training>-<start>.jsonl
        {"pdnet_journal": 1, "training": "3f...", "step": "train", "experiment": "pdnet", ...}
        {"time": 1785000000000, "step": 0, "metrics": {"train/loss_image": 0.7, ...}}
        ...
        {"time": 1785000060000, "end": "FINISHED"}

One a process, also where the process goes on with a training that another began: the two share `training`, and the
names sort in the order in which they were written. The process that writes holds a lock, which goes with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdnet.errors import DataError

_FORMAT = 1


def buffer_folder() -> Path:
    """Where the journals lie: PDNET_MLFLOW_BUFFER, else `mlflow-buffer` in the working folder."""
    return Path(os.environ.get("PDNET_MLFLOW_BUFFER") or "mlflow-buffer")


@dataclass(frozen=True)
class Header:
    """The first line: which run of which store this is.

    Attributes:
        training: identifies a training over all the processes that go on with it.
        step: name of the step, and of the run.
        experiment: name of the MLflow experiment.
        run_id: a run that somebody else made and will end; None where it is ours to make.
        tags: of the run.
        started: when this process began, Unix time in ms.
        store: address of the store without secrets.
    """

    training: str
    step: str
    experiment: str
    run_id: str | None
    tags: dict[str, str]
    started: int
    store: str


class JournalWriter:
    """A new journal, locked until it is closed or the process is gone.

    Every line goes to the system at once, so that a killed process loses none.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{header.step}-{header.training}-{header.started}.jsonl"
        self._file = self.path.open("xb", buffering=0)
        self._mend = b""
        with contextlib.suppress(OSError):  # a file system without locks
            # Not flock: loader processes, forked from this one and slow to notice that it died, would keep that.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            self.write({"pdnet_journal": _FORMAT, **dataclasses.asdict(header)})
        except OSError:
            self.path.unlink()
            raise

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            OSError: the disk is full; later lines can be written when it is so no more.
        """
        line = self._mend + json.dumps(entry, allow_nan=False).encode() + b"\n"
        self._mend = b"\n"  # should this line be cut, the next one begins anew
        if self._file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._mend = b""

    def close(self) -> None:
        """Let go of the file and the lock."""
        self._file.close()


class Journal:
    """A journal to be sent; perhaps one that is still written.

    Attributes:
        path: the file.
        header: its first line.
        last: time of the newest entry read, Unix time in ms.
        end: how the training ended, as far as was read; None where nothing says so.

    Raises:
        DataError: the file is no journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end: str | None = None
        try:
            self._file = path.open("r+b")
            first = json.loads(self._file.readline())
            if first.pop("pdnet_journal") != _FORMAT:
                raise ValueError("of another format")  # noqa: TRY301
            self.header = Header(**first)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a journal of a training ({error})") from None
        self.last = self.header.started

    def lock(self) -> bool:
        """Lock it until it is closed; False where the training that writes it is alive."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return os.fstat(self._file.fileno()).st_nlink > 0  # else it was sent and removed meanwhile

    def rewind(self) -> None:
        """Read from the first entry again."""
        self._file.seek(0)
        self._file.readline()

    def read(self) -> Iterator[dict[str, Any]]:
        """The entries with metrics from where reading stopped; a line that was cut is dropped."""
        while True:
            place, line = self._file.tell(), self._file.readline()
            if not line.endswith(b"\n"):
                self._file.seek(place)  # perhaps it is being written
                return
            try:
                entry = json.loads(line)
                self.last = max(self.last, int(entry["time"]))
            except (ValueError, KeyError, TypeError):
                continue
            self.end = entry.get("end", self.end)
            if "metrics" in entry:
                yield entry

    def siblings(self) -> list[Path]:
        """All journals of this training, this one among them, in the order in which they were written."""
        return sorted(self.path.parent.glob(f"{self.header.step}-{self.header.training}-*.jsonl"))

    def close(self) -> None:
        """Let go of the file and the lock."""
        self._file.close()
