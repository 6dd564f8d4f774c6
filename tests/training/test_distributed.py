"""Two processes on the CPU, started by torchrun, against one process with the same batches."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from process_facts import network, outcome, whole_batch
from real_runs import TORCHRUN, Project, assert_same_result, log_of
from safetensors.torch import load_file
from torch import Tensor, nn

from pdnet.config import load_config
from pdnet.data.streams import EpochBatches
from pdnet.errors import ConfigError
from pdnet.losses import weighted_bce
from pdnet.steps import pretrain, train
from pdnet.training import distributed

#: Rates at which rounding does not grow from iteration to iteration. Not AdamW, whose first step is of full length even
#: where a gradient is rounding alone.
GENTLE = {
    "optimizer": "sgd", "size": 65, "image_backbone_lr": 1e-5, "image_rest_lr": 0.0, "video_backbone_lr": 1e-5,
    "video_rest_lr": 1e-5,
}  # fmt: skip


def errors(said: str) -> list[str]:
    """Our own lines among those of torchrun."""
    return [line for line in said.splitlines() if line.startswith("pdnet: error: ")]


@pytest.fixture(scope="module")
def project(portraits: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two processes have trained here, without interruption: `two`."""
    project = Project(tmp_path_factory.mktemp("project"), portraits, workers=1, **GENTLE)
    folders = {"images": project.data / "Stills", "validation": project.root / "validation"}
    pretrain(**folders, out=project.root / "pretrained", config=load_config(project.root / "params.yaml"))
    shutil.copyfile(project.root / "pretrained" / "model.safetensors", project.root / "pretrain" / "model.safetensors")
    said = project.run("train", project.root / "two", processes=2, checkpoints=False)
    assert said.count("train 10/10") == 1  # of the two, one tells
    return project


def assert_close(one: Path, two: Path, start: Path, *, loss: float, update: float) -> None:
    """Logs alike up to the share `loss`, all changes of weights together up to the share `update`."""
    log, other = log_of(one), log_of(two)
    pd.testing.assert_frame_equal(log[["step", "epoch", "phase"]], other[["step", "epoch", "phase"]])
    rates = [name for name in log if name.startswith("lr_")]
    pd.testing.assert_frame_equal(log[rates], other[rates], check_exact=True)
    assert list(log) == list(other)
    assert np.abs(other["loss"] / log["loss"] - 1).max() < loss
    before, after, after_two = (load_file(folder / "model.safetensors") for folder in (start, one, two))
    names = [name for name in before if name.endswith((".weight", ".bias"))]
    way, difference = (
        torch.cat([(x[name] - y[name]).flatten() for name in names]).norm().item()
        for x, y in ((after, before), (after, after_two))
    )
    assert 0 < difference < update * way
    for name in (name for name in before if name.endswith((".running_mean", ".running_var"))):
        torch.testing.assert_close(after[name], after_two[name], rtol=1e-2, atol=1e-3)


def test_two_processes_learn_what_one_learns_from_the_same_batches(project: Project) -> None:
    folders = {"videos": project.data, "images": project.data / "Stills", "init": project.root / "pretrain"}
    train(**folders, out=project.root / "one", config=load_config(project.root / "params.yaml"))
    assert_close(project.root / "one", project.root / "two", project.root / "pretrain", loss=1e-4, update=0.05)


@pytest.mark.slow
def test_two_processes_pretrain_alike(portraits: Path, tmp_path: Path) -> None:
    project = Project(tmp_path, portraits, pretrain_lr=1e-5)
    project.run("pretrain", tmp_path / "two", processes=2)
    project.run("pretrain", tmp_path / "one")
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert len(one) == 6
    assert np.abs(two["loss"] / one["loss"] - 1).max() < 1e-4


def test_two_processes_killed_and_stopped_end_as_if_they_had_not_been(project: Project) -> None:
    out = project.root / "resumed"
    project.kill("train", out, after=2, processes=2)
    done = project.saved()[-1]
    with project.started("train", out, processes=2) as process:
        project.wait_for(process, done + 1)
        process.send_signal(signal.SIGTERM)  # to torchrun, which hands it on
        _, said = process.communicate()
    assert process.returncode != 0
    done = project.saved()[-1]
    assert errors(said) == [
        f"pdnet: error: stopped by SIGTERM after {done} iterations; "
        f"a checkpoint is in {project.checkpoints}, run again to go on"
    ]
    said = project.run("train", out, processes=2)
    assert said.count(f"step-{done:08d}: goes on after {done} iterations") == 1
    assert not project.checkpoints.exists()
    assert_same_result(out, project.root / "two")


@pytest.mark.slow
def test_one_process_goes_on_where_two_were_stopped(portraits: Path, tmp_path: Path) -> None:
    """Fewer GPUs are free than before: the batches are the same ones."""
    project = Project(tmp_path, portraits, **GENTLE)
    project.kill("train", tmp_path / "out", after=3, processes=2)
    assert "goes on after" in project.run("train", tmp_path / "out")
    assert log_of(tmp_path / "out")["step"].tolist() == list(range(10))


def test_a_failure_of_one_process_is_one_line(portraits: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(portraits, tmp_path / "mvps"))
    frame = data / "Keyframes" / "480p" / "talk" / "a" / "00005.jpg"
    frame.write_bytes(frame.read_bytes()[:900])  # one of the two reads it, and not in the first iteration
    project = Project(tmp_path, data, workers=1)
    done = subprocess.run(
        project.command("train", tmp_path / "out", processes=2), check=False, capture_output=True, text=True
    )
    assert done.returncode != 0
    (error,) = errors(done.stderr)
    assert error.startswith(f"pdnet: error: {frame}: damaged image (")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_death_of_one_process_ends_the_other_with_a_line(portraits: Path, tmp_path: Path) -> None:
    project = Project(tmp_path, portraits, epochs=500)
    with project.started("train", tmp_path / "out", processes=2) as process:
        project.wait_for(process, 1)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(workers[1]), signal.SIGKILL)
        _, said = process.communicate()
    assert process.returncode != 0
    assert len(errors(said)) <= 1  # torchrun, which names the signal, may end the other before it speaks
    assert "SIGKILL" in said


def test_a_batch_that_cannot_be_shared_is_refused_before_any_work(portraits: Path, tmp_path: Path) -> None:
    project = Project(tmp_path, portraits, image_batch_size=3)
    shutil.rmtree(tmp_path / "pretrain")
    done = subprocess.run(
        project.command("train", tmp_path / "out", processes=2), check=False, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert errors(done.stderr) == [
        "pdnet: error: train.image_batch_size: 3, expected a multiple of the 2 processes that share it"
    ]


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_an_environment_of_torchrun_is_an_error(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    environment = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "WORLD_SIZE": "2"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    with (
        pytest.raises(
            ConfigError, match=f"^WORLD_SIZE is 2, but {missing} not set; expected to be started by torchrun"
        ),
        distributed.process_group("cpu"),
    ):
        pass


def test_one_process_under_torchrun_is_a_single_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with distributed.process_group("cpu") as device:
        assert device == torch.device("cpu")
        assert (distributed.processes(), distributed.rank(), distributed.is_main()) == (1, 0, True)
        layers = network()
        distributed.share_batch_norm(layers)
        assert type(layers[0]) is nn.BatchNorm2d


def test_the_slices_of_the_processes_are_the_batch() -> None:
    whole = list(EpochBatches(10, 6, seed=0, stream="video", stop=5))
    slices = [list(EpochBatches(10, 6, seed=0, stream="video", stop=5, rank=rank, processes=3)) for rank in range(3)]
    assert all(len(keys) == 2 for batches in slices for keys in batches)
    assert [[*itertools.chain(*shares)] for shares in zip(*slices, strict=True)] == whole


# --- what the processes agree on


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("found")
    script = Path(__file__).with_name("process_facts.py")
    command = [sys.executable, *TORCHRUN, str(script), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_batch_normalisation_is_that_of_the_whole_batch(found: list[dict[str, Tensor]]) -> None:
    wanted = outcome(network(), *whole_batch())
    images = {name: torch.cat([rank.pop(name) for rank in found]) for name in ("output", "gradient of images")}
    images["gradient of images"] /= 2  # each process has the gradient of its own mean; the loss is the mean of the two
    for name, value in images.items():
        torch.testing.assert_close(value, wanted.pop(name), rtol=1e-9, atol=1e-11)
    for name, value in wanted.items():
        assert torch.equal(found[0][name], found[1][name]), name
        torch.testing.assert_close(found[0][name], value, rtol=1e-9, atol=1e-11)


def test_the_weight_of_the_bce_is_that_of_the_whole_batch(found: list[dict[str, Tensor]]) -> None:
    images, factors = whole_batch()
    wanted = weighted_bce(images[:, :1] - 100, (factors[:, :1] > 0.3).double()).item()
    assert [rank["bce"].item() for rank in found] == pytest.approx([wanted, wanted], rel=1e-6)


def test_all_decide_alike(found: list[dict[str, Tensor]]) -> None:
    assert [rank["votes"].tolist() for rank in found] == [[True, False]] * 2
    assert [rank["from main"].item() for rank in found] == [10, 10]


def test_normalising_alone_is_plain_batch_normalisation() -> None:
    """In one process too, in float32 and bfloat16, in training and in evaluation."""
    torch.manual_seed(0)
    plain, other = nn.BatchNorm2d(5), nn.BatchNorm2d(5)
    shared = distributed.GlobalBatchNorm2d(other)
    for layer in (plain, shared):
        nn.init.constant_(layer.weight, 1.5)
    for dtype in (torch.float32, torch.bfloat16):
        x = (torch.randn(4, 5, 6, 7) * 3 + 2).to(dtype)
        a, b = (layer(x) for layer in (plain, shared))
        assert a.dtype == b.dtype == dtype
        torch.testing.assert_close(a, b)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(plain, name), getattr(shared, name))
    torch.testing.assert_close(plain.eval()(x), shared.eval()(x))


def test_the_derivative_of_the_normalisation() -> None:
    layer = distributed.GlobalBatchNorm2d(nn.BatchNorm2d(3).double())
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
