"""The folders of a pipeline run whose network is real and tiny, and whose training did nothing."""

from __future__ import annotations

from pathlib import Path

from finished_run import train_log
from tiny_profile import SIZE, decided_network, tiny_config

from pdnet import steps
from pdnet.config import Config
from pdnet.files import write_json
from pdnet.steps.run_record import RunRecord
from pdnet.weights import save_model


def write_real_run(root: Path, videos: Path, *, seed: int = 0, config: Config | None = None) -> dict[str, Path]:
    """Write them, as arguments of `register_model`; evaluation and export are done by the steps themselves."""
    config = config or tiny_config()
    names = ("validation", "pretrain", "train", "evaluation", "export")
    folders = {name: root / name for name in names}
    validation, pretrain, train, evaluation, export = folders.values()
    data = {"videos": videos, "images": videos / "Stills"}
    for folder in (validation, pretrain, train):
        folder.mkdir(parents=True)
    record = RunRecord("validate", config, data=data)
    record.write(validation)
    write_json(validation / "data.json", {"valid": True, "data": record.facts["data"]})
    for name, folder, parent in (("pretrain", pretrain, validation), ("train", train, pretrain)):
        record = RunRecord(name, config, parents=(parent,), data=data)
        save_model(folder / "model.safetensors", decided_network(seed), record.model_facts(size=SIZE))
        train_log(3).assign(lr_encoder=1e-3).to_parquet(folder / "log.parquet")
        record.write(folder, device="Example CPU", precision="fp32")
    steps.evaluate(videos=videos, model=train, out=evaluation, config=config)
    steps.export_onnx(videos=videos, model=train, evaluation=evaluation, out=export, config=config)
    return folders
