"""A training that was killed, stopped or damaged goes on as if nothing had been; another one's state is not taken."""

from __future__ import annotations

import logging
import os
import resource
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from real_runs import Project, assert_same_result
from tiny_profile import MODEL, tiny_config
from torch import Tensor

from pdnet.config import load_config
from pdnet.data.index import index_clips, index_stills
from pdnet.data.streams import PairDataset, Pairs, StillDataset
from pdnet.errors import CheckpointError, ConfigError, DataError, TrainingError
from pdnet.losses import Loss, LossConfig
from pdnet.model import ModelConfig, PDNet
from pdnet.steps import pretrain, train
from pdnet.training import loop
from pdnet.training.checkpoint import Checkpoints
from pdnet.training.config import PretrainConfig, TrainConfig
from pdnet.training.task import Task

# --- real processes, killed


@pytest.mark.parametrize(
    ("optimizer", "kills"), [("adamw", (1, 4, 8)), pytest.param("sgd", (2, 5, 7), marks=pytest.mark.slow)]
)
def test_training_killed_three_times_ends_as_if_it_had_not_been(
    portraits: Path, tmp_path: Path, optimizer: str, kills: tuple[int, ...]
) -> None:
    project = Project(tmp_path, portraits, optimizer=optimizer, image_rest_lr=0.0)
    done = 0
    for after in kills:
        project.kill("train", tmp_path / "killed", after=max(after, done + 1))
        done = project.saved()[-1]
    assert f"step-{done:08d}: goes on after {done} iterations" in project.run("train", tmp_path / "killed")
    assert not project.checkpoints.exists()
    config = load_config(tmp_path / "params.yaml")
    folders = {"videos": portraits, "images": portraits / "Stills", "init": tmp_path / "pretrain"}
    train(**folders, out=tmp_path / "whole", config=config)
    assert_same_result(tmp_path / "killed", tmp_path / "whole")


def test_pretraining_killed_ends_as_if_it_had_not_been(portraits: Path, tmp_path: Path) -> None:
    project = Project(tmp_path, portraits)
    project.kill("pretrain", tmp_path / "killed", after=3)
    done = project.saved()[-1]
    assert f"step-{done:08d}: goes on after {done} iterations" in project.run("pretrain", tmp_path / "killed")
    assert not project.checkpoints.exists()
    folders = {"images": portraits / "Stills", "validation": tmp_path / "validation"}
    pretrain(**folders, out=tmp_path / "whole", config=load_config(tmp_path / "params.yaml"))
    assert_same_result(tmp_path / "killed", tmp_path / "whole")


def test_sigterm_writes_a_checkpoint_and_fails_with_one_line(portraits: Path, tmp_path: Path) -> None:
    project = Project(tmp_path, portraits, epochs=200, checkpoint_seconds=0.5)
    with project.started("train", tmp_path / "out") as process:
        project.wait_for(process, 1)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    done = project.saved()[-1]
    assert process.returncode == 2
    assert said.splitlines()[-1] == (
        f"pdnet: error: stopped by SIGTERM after {done} iterations; "
        f"a checkpoint is in {project.checkpoints}, run again to go on"
    )
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


# --- the loops, in this process

MODEL_CONFIG = ModelConfig(**MODEL)
TRAIN = TrainConfig(
    epochs=1, batch_size=4, image_batch_size=2, image_backbone_lr=1e-3, video_backbone_lr=1e-3, video_rest_lr=5e-3,
    precision="fp32", workers=0, cache_mb=64,
)  # fmt: skip
RUN = {"step": "train", "train": TRAIN}
STEPS = 5  # image, video, video, image, video


class CrashError(Exception):
    """Stands for whatever may end a process."""


class FragileTask(Task):
    """Draws from torch's global generator, and crashes before an iteration."""

    def __init__(self, crash_at: int | None = None) -> None:
        torch.manual_seed(0)
        super().__init__(PDNet(MODEL_CONFIG), LossConfig(semantic_weight=0), seed=0)
        self.iterations = 0
        self.crash_at = crash_at

    def video(self, batch: Pairs) -> Loss:
        self._before()
        return super().video(batch._replace(image_t=batch.image_t + 0.1 * torch.randn_like(batch.image_t)))

    def image(self, batch: Any) -> Loss:
        self._before()
        return super().image(batch)

    def pretrain(self, batch: Any) -> Tensor:
        self._before()
        return super().pretrain(batch)

    def _before(self) -> None:
        if self.iterations == self.crash_at:
            raise CrashError
        self.iterations += 1


class Loops:
    """Short trainings with checkpoints in one folder."""

    def __init__(self, portraits: Path, folder: Path) -> None:
        self.videos = PairDataset(index_clips(portraits, splits=("train",)), size=33, seed=0, cache_mb=64)
        self.images = StillDataset(index_stills(portraits / "Stills"), size=33, seed=0, stream="image", cache_mb=64)
        self.folder = folder

    def checkpoints(self, seconds: float = 0, **run: Any) -> Checkpoints:
        return Checkpoints(self.folder, RUN | run, seconds)

    def train(
        self, crash_at: int | None = None, *, checkpoints: Checkpoints | None = None, config: TrainConfig = TRAIN
    ) -> tuple[dict[str, Tensor], pd.DataFrame, int]:
        """Weights, log, and how many iterations were computed."""
        task = FragileTask(crash_at)
        log = loop.train(task, self.videos, self.images, config, seed=0, checkpoints=checkpoints)
        return task.state_dict(), log, task.iterations

    def crash(self, at: int, **options: Any) -> None:
        with pytest.raises(CrashError):
            self.train(at, checkpoints=self.checkpoints(), **options)

    def saved(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def loops(portraits: Path, tmp_path: Path) -> Loops:
    return Loops(portraits, tmp_path / "checkpoints")


@pytest.fixture(scope="module")
def whole(portraits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """What a training without interruption and without checkpoints gives."""
    state, log, iterations = Loops(portraits, tmp_path_factory.mktemp("none")).train()
    assert iterations == len(log) == STEPS
    return state, log


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """What was logged, as a list of lines."""
    with caplog.at_level(logging.INFO, "pdnet.training"):
        yield lambda: [record.getMessage() for record in caplog.records if record.name == "pdnet.training"]


def assert_equal(found: tuple[dict[str, Tensor], pd.DataFrame, int], whole: tuple[dict[str, Tensor], pd.DataFrame]):
    state, log, _ = found
    assert all(torch.equal(state[name], whole[0][name]) for name in whole[0])
    assert log["seconds"].is_monotonic_increasing
    clock = ["seconds", "data_seconds"]
    pd.testing.assert_frame_equal(log.drop(columns=clock), whole[1].drop(columns=clock), check_exact=True)


def test_it_goes_on_after_every_iteration(loops: Loops, whole: Any, told: Any) -> None:
    for at in range(1, STEPS):
        loops.crash(at if at == 1 else 1)  # one iteration further, each time in a new process
    found = loops.train(checkpoints=loops.checkpoints())
    assert_equal(found, whole)
    assert found[2] == 1
    assert told() == [f"{loops.folder / f'step-{at:08d}'}: goes on after {at} iterations" for at in range(1, STEPS)]


def test_it_goes_on_with_adamw_where_groups_took_turns(loops: Loops) -> None:
    config = replace(TRAIN, optimizer="adamw", video_backbone_lr=0.0)
    loops.crash(3, config=config)
    state, log, _ = loops.train(config=config)
    assert_equal(loops.train(checkpoints=loops.checkpoints(), config=config), (state, log))


def test_pretraining_goes_on(loops: Loops) -> None:
    config = PretrainConfig(epochs=3, batch_size=3)

    def run(crash_at: int | None = None, checkpoints: Checkpoints | None = None) -> Any:
        task = FragileTask(crash_at)
        log = loop.pretrain(task, loops.images, config, seed=0, workers=0, checkpoints=checkpoints)
        return task.state_dict(), log, task.iterations

    with pytest.raises(CrashError):
        run(4, loops.checkpoints())
    state, log, _ = run()
    found = run(checkpoints=loops.checkpoints())
    assert found[2] == len(log) - 4
    assert all(torch.equal(found[0][name], state[name]) for name in state)
    pd.testing.assert_frame_equal(found[1].drop(columns="seconds"), log.drop(columns="seconds"), check_exact=True)


def test_a_finished_training_has_nothing_left_to_do(loops: Loops, whole: Any) -> None:
    loops.train(checkpoints=loops.checkpoints())
    found = loops.train(crash_at=0, checkpoints=loops.checkpoints())  # the result was not written: killed just before
    assert_equal(found, whole)
    assert found[2] == 0


def test_the_last_two_are_kept_and_each_is_safetensors_parquet_and_json(loops: Loops) -> None:
    loops.crash(4)
    assert loops.saved() == ["step-00000003", "step-00000004"]
    files = {path.name for path in (loops.folder / "step-00000004").iterdir()}
    assert files == {".pdnet", "checkpoint.json", "log.parquet", "state.safetensors"}
    assert len(pd.read_parquet(loops.folder / "step-00000004" / "log.parquet")) == 4


def test_one_is_written_when_the_time_has_come(loops: Loops) -> None:
    with pytest.raises(CrashError):
        loops.train(4, checkpoints=loops.checkpoints(seconds=1000))
    assert not loops.folder.exists()


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("state.safetensors", "cut"),
        ("state.safetensors", "zeros"),
        ("log.parquet", "cut"),
        ("log.parquet", "missing"),
        ("checkpoint.json", "cut"),
        ("checkpoint.json", "missing"),
    ],
)
def test_a_damaged_checkpoint_is_left_out_for_the_one_before(
    loops: Loops, whole: Any, told: Any, file: str, damage: str
) -> None:
    loops.crash(4)
    path = loops.folder / "step-00000004" / file
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "zeros":
        path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    else:
        path.unlink()
    found = loops.train(checkpoints=loops.checkpoints())
    assert_equal(found, whole)
    assert found[2] == STEPS - 3
    left_out, goes_on = told()
    assert left_out.startswith(f"{path}: ")
    assert left_out.endswith("; the checkpoint is left out")
    assert goes_on == f"{loops.folder / 'step-00000003'}: goes on after 3 iterations"


@pytest.mark.parametrize(
    ("run", "difference"),
    [
        ({"train": replace(TRAIN, weight_decay=0.1)}, "train differs"),
        ({"data": {"videos": "md5"}}, "data differs"),
        ({"step": "pretrain", "train": None}, "step and train differ"),
    ],
)
def test_a_checkpoint_of_another_run_is_replaced(loops: Loops, told: Any, run: dict[str, Any], difference: str) -> None:
    loops.crash(4)
    with pytest.raises(CrashError):
        loops.train(1, checkpoints=loops.checkpoints(**run))
    assert told() == [f"{loops.folder / 'step-00000004'}: a checkpoint of another run ({difference}); starts anew"]
    assert loops.saved() == ["step-00000001"]


def test_other_initial_weights_are_another_run(loops: Loops, told: Any) -> None:
    loops.crash(2)
    task = FragileTask()
    with torch.no_grad():
        task.network.head.bias += 1e-3
    task.crash_at = 1
    with pytest.raises(CrashError):
        loop.train(task, loops.videos, loops.images, TRAIN, seed=0, checkpoints=loops.checkpoints())
    assert task.iterations == 1  # and not three
    assert "(initial weights differs)" in told()[0]


def test_what_changes_the_speed_alone_is_the_same_run(loops: Loops, whole: Any) -> None:
    loops.crash(3)
    config = replace(TRAIN, workers=2, cache_mb=0, checkpoint_seconds=7)
    found = loops.train(checkpoints=loops.checkpoints(train=config), config=config)
    assert_equal(found, whole)
    assert found[2] == STEPS - 3


def test_files_of_others_and_halves_of_ours_in_the_folder(loops: Loops) -> None:
    others = [loops.folder / "notes.txt", loops.folder / "step-by-step" / "a.txt", loops.folder / "step-00000001"]
    halves = loops.folder / ".step-00000003.abcdef" / "step-00000003" / "state.safetensors"
    for path in (*others[:2], others[2] / "mine.txt", halves):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    checkpoints = loops.checkpoints(seconds=1000)
    with pytest.raises(CrashError):
        loops.train(0, checkpoints=checkpoints)
    checkpoints.remove()
    assert loops.saved() == ["notes.txt", "step-00000001", "step-by-step"]
    with pytest.raises(DataError, match="step-00000001: holds other files"):  # and not overwritten either
        loops.train(checkpoints=loops.checkpoints())


def test_a_full_disk_names_the_last_whole_checkpoint(loops: Loops, whole: Any) -> None:
    loops.crash(3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError) as caught:
            loops.train(checkpoints=loops.checkpoints())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    last = loops.folder / "step-00000003"
    assert str(caught.value).startswith(f"{loops.folder / 'step-00000004'}: cannot be written (")
    assert str(caught.value).endswith(f"; the last whole one is {last}")
    assert loops.saved() == ["step-00000002", "step-00000003"]
    assert_equal(loops.train(checkpoints=loops.checkpoints()), whole)


def test_sigterm_finishes_the_iteration_and_is_as_it_was_afterwards(loops: Loops, whole: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)

    class Terminated(FragileTask):
        def _before(self) -> None:
            super()._before()
            if self.iterations == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    task = Terminated()
    with pytest.raises(TrainingError, match=r"^stopped by SIGTERM after 3 iterations; a checkpoint is in \S+, run"):
        loop.train(task, loops.videos, loops.images, TRAIN, seed=0, checkpoints=loops.checkpoints(seconds=1000))
    assert signal.getsignal(signal.SIGTERM) is before
    assert loops.saved() == ["step-00000003"]
    assert_equal(loops.train(checkpoints=loops.checkpoints()), whole)


def test_in_another_thread_there_are_checkpoints_without_signals(loops: Loops, whole: Any) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(loops.train(checkpoints=loops.checkpoints())))
    thread.start()
    thread.join()
    assert_equal(found[0], whole)
    assert loops.saved() == ["step-00000004", "step-00000005"]


def test_the_time_between_checkpoints_is_not_negative() -> None:
    with pytest.raises(ConfigError, match=r"train\.checkpoint_seconds: -1\.0, expected at least 0"):
        tiny_config(train={"checkpoint_seconds": -1})
    assert tiny_config(train={"checkpoint_seconds": 0}).train.checkpoint_seconds == 0
