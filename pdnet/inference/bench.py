"""Which of several ways of doing the same thing is faster, and by how much, on a machine that does other things too.

One process runs every alternative once a round. Foreign load slows the alternatives of a round together, so what is
reported is the ratio of two times of the same round, over all rounds. No round is left out.

`bench_record` is the form of the result as JSON:

    {
      "format": "pdnet-bench-1",
      "command": "pdnet bench ...", "date": ISO 8601, UTC,
      "device": "Intel Xeon ..., 2 threads", "threads": 2, "flush_denormals": true,
      "versions": {"pdnet", "python", "torch", "onnxruntime", "openvino"}      null: not installed
      "model": {"source": file or params file, "architecture": {...}, "size": 480, "frame": [height, width]},
      "comparisons": [{
        "table": "network",                        several comparisons may make one table
        "measure": "faster" | "share" | "cost",    how people read `ratio`: r times as fast; 100 r % of its time;
                                                   100 (1/r - 1) % more than the baseline
        "baseline": name, "rounds": n, "warm_up": n, "lead_in": n,
        "rows": [{
          "name": ...,
          "ms": {"median", "p5", "p95"},           of one call
          "ratio": {"median", "p5", "p95"},        time of the baseline / its time in the same round, over the rounds
          "times_ms": [...]                        every timed call, in order of the rounds
        }]
      }],
      "largest_difference": {name: of a probability from the baseline's, on the frame that was timed;
                                     null: no number},
      "memory": {name: {"start_mib", "peak_mib", "running_mib", "device_mib"}} | null,    see `PeakMemory`
      "not_measured": {name: why}
    }
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from pdnet import __version__
from pdnet.data.io import UInt8Array
from pdnet.devices import device_name
from pdnet.inference.session import Backend, PortraitSession
from pdnet.progress import track

FORMAT = "pdnet-bench-1"
#: How a ratio is read: `faster`, r times as fast; `share`, the baseline is a part of it; `cost`, it takes more.
Measure = Literal["faster", "share", "cost"]
#: Opens a backend; child processes are sent it, so it is a function of a module, or `functools.partial` of one.
Opener = Callable[[], Backend]

#: Untimed calls right before each timed one. A stream calls the same network again and again: its weights are in the
#: caches, and no other runtime's threads are still spinning.
LEAD_IN = 1
_DIGITS = 4


class Spread(NamedTuple):
    """Median and the range of nine values in ten."""

    median: float
    p5: float
    p95: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """The spread of values."""
        p5, median, p95 = np.percentile(np.asarray(values, dtype=np.float64), [5, 50, 95])
        return Spread(float(median), float(p5), float(p95))

    def to_json(self) -> dict[str, float]:
        """The three numbers under their names."""
        return {name: _rounded(value) for name, value in self._asdict().items()}


@dataclass(frozen=True)
class Comparison:
    """The times of alternatives that took turns.

    Attributes:
        times: of each alternative, milliseconds of a call in every round; the first one is the baseline.
        warm_up: rounds before, untimed.
        table: what is compared, for people.
        measure: how people read the ratios.
    """

    times: Mapping[str, Sequence[float]]
    warm_up: int
    table: str = ""
    measure: Measure = "faster"

    @property
    def baseline(self) -> str:
        """The alternative that the others are held against."""
        return next(iter(self.times))

    @property
    def rounds(self) -> int:
        """How often each alternative was timed."""
        return len(self.times[self.baseline])

    def milliseconds(self, name: str) -> Spread:
        """Of one call."""
        return Spread.of(self.times[name])

    def ratio(self, name: str) -> Spread:
        """Time of the baseline over that of the alternative in the same round: 2 is twice as fast."""
        pairs = zip(self.times[self.baseline], self.times[name], strict=True)
        return Spread.of([baseline / own for baseline, own in pairs])

    def to_json(self) -> dict[str, Any]:
        """An entry of `comparisons`."""
        rows = [
            {
                "name": name,
                "ms": self.milliseconds(name).to_json(),
                "ratio": self.ratio(name).to_json(),
                "times_ms": [_rounded(value) for value in values],
            }
            for name, values in self.times.items()
        ]
        return {
            "table": self.table,
            "measure": self.measure,
            "baseline": self.baseline,
            "rounds": self.rounds,
            "warm_up": self.warm_up,
            "lead_in": LEAD_IN,
            "rows": rows,
        }


def compare(
    alternatives: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 1,
    table: str = "",
    measure: Measure = "faster",
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Time alternatives in turn.

    Args:
        alternatives: what is called, under the names of the result; the first one is the baseline. A call on a GPU
            has to wait for its result.
        rounds: how often each is timed.
        warm_up: rounds before, untimed.
        table: a title.
        measure: how people are to read the ratios.
        clock: seconds from any origin.
    """
    names = list(alternatives)
    for turn in range(warm_up):
        for name in turns(names, turn):
            alternatives[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in track(range(rounds), table or "rounds"):
        for name in turns(names, turn):
            call = alternatives[name]
            for _ in range(LEAD_IN):
                call()
            started = clock()
            call()
            times[name].append(1e3 * (clock() - started))
    return Comparison(times, warm_up, table, measure)


def turns(names: Sequence[str], turn: int) -> list[str]:
    """The order of a round: each goes first in turn, and every other cycle of rounds runs backwards.

    So no alternative always has the same one before it, or the same place in the round.
    """
    cycle, first = divmod(turn, len(names))
    order = [*names[first:], *names[:first]]
    return order[::-1] if cycle % 2 else order


@contextlib.contextmanager
def flushed_denormals() -> Iterator[bool]:
    """Take numbers too small for the processor's fast path for 0 meanwhile; gives False where it cannot.

    They come from random weights, and from nothing that is ever shown; products with them take a hundred times as
    long. Threads inherit the setting from the one that starts them: open backends inside.
    """
    try:
        yield torch.set_flush_denormal(True)
    finally:
        torch.set_flush_denormal(False)


class PeakMemory(NamedTuple):
    """The most memory that a process of its own had resident.

    Attributes:
        start_mib: before the model was opened: the interpreter, torch, pdnet.
        peak_mib: in all, with opening the model (compiling it) and frames.
        running_mib: while frames ran, with everything that stays; None where only Linux could tell.
        device_mib: of a GPU's own memory after the frames: weights, buffers, kernels, and what allocators keep. All
            processes count, so nothing else may run there. None on the CPU.
    """

    start_mib: float
    peak_mib: float
    running_mib: float | None
    device_mib: float | None = None


def peak_memory(opener: Opener, frame: UInt8Array, *, device: torch.device, threads: int) -> PeakMemory:
    """Open a backend in a process of its own, run some frames through it, and see what that took.

    Args:
        opener: what is opened.
        frame: (H, W, 3) uint8.
        device: where the backend runs.
        threads: of torch, and of the runtimes that follow it.
    """
    # A fresh interpreter: a copy of this process would have its memory.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_memory, opener, frame, device, threads).result()


def _peak_memory(opener: Opener, frame: UInt8Array, device: torch.device, threads: int) -> PeakMemory:
    torch.set_num_threads(threads)
    start, unused = _peak_mib(), _device_mib(device)
    with flushed_denormals():
        session = PortraitSession(opener(), reference=frame)
        session.step(frame)
        opened = _peak_mib()
        resettable = _reset_peak()
        for _ in range(3):
            session.step(frame)
        running = _peak_mib()
        used = _device_mib(device)
    return PeakMemory(
        round(start, 1),
        round(max(opened, running), 1),
        round(running, 1) if resettable else None,
        None if used is None or unused is None else round(used - unused, 1),
    )


def _device_mib(device: torch.device) -> float | None:
    """What is in use of a GPU's memory, in MiB."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / 1024**2


def _peak_mib() -> float:
    """The most that this process had resident, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # the parent's own peak counts into ru_maxrss: Linux hands it on when a program is started
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def _reset_peak() -> bool:
    """Count the peak from here on; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def bench_record(
    comparisons: Sequence[Comparison],
    *,
    command: str,
    device: torch.device,
    flush_denormals: bool,
    model: Mapping[str, Any],
    differences: Mapping[str, float],
    memory: Mapping[str, PeakMemory] | None,
    not_measured: Mapping[str, str],
) -> dict[str, Any]:
    """The result as JSON, whose form stands above."""
    return {
        "format": FORMAT,
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "flush_denormals": flush_denormals,
        "versions": {
            "pdnet": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "onnxruntime", "openvino")},
        },
        "model": dict(model),
        "comparisons": [comparison.to_json() for comparison in comparisons],
        "largest_difference": {
            name: _rounded(value) if math.isfinite(value) else None for name, value in differences.items()
        },
        "memory": None if memory is None else {name: peak._asdict() for name, peak in memory.items()},
        "not_measured": dict(not_measured),
    }


def format_record(record: Mapping[str, Any]) -> str:
    """A result for a terminal: a table of each group of comparisons."""
    model = record["model"]
    height, width = model["frame"]
    denormals = "flushed" if record["flush_denormals"] else "kept"
    rows: list[tuple[str, ...]]
    lines = [
        f"{record['device']}; denormals {denormals}",
        f"{model['source']}: input {model['size']}x{model['size']}, frames {height}x{width}",
    ]
    for table, group in groupby(record["comparisons"], key=lambda comparison: comparison["table"]):
        comparisons = list(group)
        first = comparisons[0]
        rows = [(f"{table}, {first['rounds']} rounds", "ms", "5-95 %", _HEADS[first["measure"]], "5-95 %")]
        for comparison in comparisons:
            rows += [_cells(row, comparison) for row in comparison["rows"]]
        lines += ["", *_aligned(rows)]
    if memory := record["memory"]:
        heads = {"start_mib": "at start", "peak_mib": "peak", "running_mib": "peak while running"}
        if any(peak["device_mib"] is not None for peak in memory.values()):
            heads["device_mib"] = "on the GPU"
        rows = [("memory, a process each, MiB", *heads.values())]
        for name, peak in memory.items():
            rows.append((name, *("–" if peak[key] is None else f"{peak[key]:.0f}" for key in heads)))
        lines += ["", *_aligned(rows)]
    if record["not_measured"]:
        lines += ["", *(f"not measured: {name}: {why}" for name, why in record["not_measured"].items())]
    return "\n".join(lines)


_HEADS = {"faster": "times as fast", "share": "processing, share", "cost": "more time"}


def _cells(row: Mapping[str, Any], comparison: Mapping[str, Any]) -> tuple[str, ...]:
    ms = row["ms"]
    own = (row["name"], f"{ms['median']:.1f}", f"{ms['p5']:.1f} – {ms['p95']:.1f}")
    if row["name"] == comparison["baseline"]:
        return (*own, "", "")
    shown = [_reading(row["ratio"][key], comparison["measure"]) for key in ("median", "p5", "p95")]
    low, high = shown[1:] if comparison["measure"] != "cost" else shown[:0:-1]  # a larger ratio is a smaller cost
    return (*own, shown[0], f"{low} – {high}")


def _reading(ratio: float, measure: Measure) -> str:
    if measure == "faster":
        return f"{ratio:.2f}x"
    return f"{100 * ratio:.1f} %" if measure == "share" else f"{100 * (1 / ratio - 1):+.1f} %"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([f"{row[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def _rounded(value: float) -> float:
    """A number with the digits that mean something."""
    return float(f"{value:.{_DIGITS}g}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
