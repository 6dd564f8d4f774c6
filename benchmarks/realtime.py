"""What configs/realtime.yaml gives away against configs/paper.yaml, and what it gains: J&F and speed.

The network of configs/paper.yaml is trained by the recipe of params.yaml on its data, at the paper's size of input.
Then each configuration runs it at its own size: exported, scored through the backend that is fastest here, and timed in
turn.

    python benchmarks/realtime.py             # after `make demo`, whose data and validation it takes; an hour

Writes benchmarks/results/realtime-cpu.json. Trainings go on where they were stopped (build/realtime/).
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pdnet import __version__
from pdnet.cli import show_progress
from pdnet.config import Config, config_hash, load_config
from pdnet.data.index import index_clips
from pdnet.devices import device_name
from pdnet.errors import PDNetError
from pdnet.files import read_json, write_json
from pdnet.inference.backends import open_backend
from pdnet.inference.bench import Comparison, compare, flushed_denormals
from pdnet.inference.predict import predict
from pdnet.inference.session import PortraitSession
from pdnet.inference.ways import compare_networks, some_frame
from pdnet.steps import evaluate, export_onnx, parity, pretrain, train

BUILD = Path("build/realtime")
RESULT = Path("benchmarks/results/realtime-cpu.json")
CONFIGS = {"paper": Path("configs/paper.yaml"), "realtime": Path("configs/realtime.yaml")}


def enlarged(recipe: Config, network: Config) -> Config:
    """The recipe with another network, trained at that one's size; its pretraining grows as that of the input does."""
    size = recipe.pretrain.size and round(recipe.pretrain.size * network.data.size / recipe.data.size / 32) * 32
    return dataclasses.replace(
        recipe,
        model=network.model,
        data=dataclasses.replace(recipe.data, size=network.data.size),
        pretrain=dataclasses.replace(recipe.pretrain, size=size),
        train=dataclasses.replace(recipe.train, size=network.train.size),
        tracking=dataclasses.replace(recipe.tracking, live=False),
    )


def trained(config: Config, validation: Path) -> Path:
    """The folder of the network's training, or of what is there of it already."""
    videos, images, kept = Path(config.data.videos), Path(config.data.images), BUILD / "checkpoints"
    start, out = BUILD / "pretrain", BUILD / "train"
    if not (start / "run.json").is_file():
        pretrain(images=images, validation=validation, out=start, config=config, checkpoints=kept / "pretrain")
    if not (out / "run.json").is_file():
        train(videos=videos, images=images, init=start, out=out, config=config, checkpoints=kept / "train")
    return out


def run_at(size: int, config: Config, model: Path, folder: Path) -> dict[str, Any]:
    """Score and export the network at a size of input; what is known of it."""
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, size=size))
    videos, evaluation, export = Path(config.data.videos), folder / "evaluation", folder / "export"
    evaluate(videos=videos, model=model, out=evaluation, config=config)
    export_onnx(videos=videos, model=model, evaluation=evaluation, out=export, config=config)
    backend = open_backend(export, device="cpu")
    frames = index_clips(videos, resolution=config.data.resolution, splits=("val",))
    return {
        "size": size,
        "jf_mean": read_json(evaluation / "scores.json")["jf_mean"],
        "backend": backend.name,
        "jf_mean_by_backend": parity.score(backend, frames, config, label=backend.name),
    }


def timed(folders: dict[str, Path], *, rounds: int) -> list[Comparison]:
    """The networks alone, and from frame to mask."""
    frame = some_frame()
    sessions = {
        name: PortraitSession(open_backend(folder / "export", device="cpu"), reference=frame)
        for name, folder in folders.items()
    }

    def mask(session: PortraitSession) -> object:
        return session.step(frame).probability >= 0.5

    with flushed_denormals():
        whole = {name: partial(mask, session) for name, session in sessions.items()}
        return [
            compare_networks(sessions, frame, rounds=rounds),
            compare(whole, rounds=rounds, table="frame to mask", measure="faster"),
        ]


def from_file_to_file(folders: dict[str, Path], clip: Path) -> dict[str, float]:
    """Frames a second of `pdnet predict`, which decodes, segments, puts a blur behind, and encodes."""
    with tempfile.TemporaryDirectory() as scratch:
        video = Path(scratch, "clip.mp4")
        some = next(iter(folders.values())) / "export"
        predict(clip, video, model=some, device="cpu", background="blur")
        return {
            name: round(predict(video, Path(scratch, f"{name}.mp4"), model=folder / "export", device="cpu").fps, 1)
            for name, folder in folders.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the recipe, and the data")
    parser.add_argument("--validation", type=Path, default=Path("build/validation"))
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    recipe = load_config(options.params)
    configs = {name: load_config(path) for name, path in CONFIGS.items()}
    base = configs["paper"]
    assert all(
        (each.model, each.train.size or each.data.size) == (base.model, base.data.size) for each in configs.values()
    )
    config = enlarged(recipe, base)
    model = trained(config, options.validation)
    folders = {name: BUILD / name for name in configs}
    runs = {name: run_at(each.data.size, config, model, folders[name]) for name, each in configs.items()}
    frames = index_clips(Path(recipe.data.videos), resolution=recipe.data.resolution, splits=("val",))
    comparisons = timed(folders, rounds=options.rounds)
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "pdnet": __version__,
        "torch": torch.__version__,
        "device": device_name(torch.device("cpu")),
        "recipe": {"params": str(options.params), "config_hash": config_hash(config)},
        "data_md5": read_json(folders["paper"] / "evaluation" / "run.json")["data"]["videos"]["md5"],
        "architecture": dataclasses.asdict(config.model),
        "trained_at": config.train.size or config.data.size,
        "runs": runs,
        "comparisons": [comparison.to_json() for comparison in comparisons],
        "predict_fps": from_file_to_file(folders, Path(frames["image"].iloc[0]).parent),
    }
    write_json(options.out, record)
    for name, facts in runs.items():
        network, whole = (comparison.milliseconds(name).median for comparison in comparisons)
        print(
            f"{name}, {facts['size']}: J&F {100 * facts['jf_mean']:.2f} by torch, "
            f"{100 * facts['jf_mean_by_backend']:.2f} by {facts['backend']}; "
            f"network {network:.1f} ms, frame to mask {whole:.1f} ms, "
            f"file to file {record['predict_fps'][name]} frames/s"
        )
    print(options.out)


if __name__ == "__main__":
    try:
        with show_progress():
            main()
    except PDNetError as error:
        sys.exit(f"realtime: {error}")
