"""Step 8: the run on record and the model in the registry."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pdnet.config import Config, config_hash, to_mapping
from pdnet.files import atomic_folder, write_json
from pdnet.steps.lineage import RunRecord
from pdnet.tracking import register_model


def register(
    *, pretrain: Path, train: Path, evaluation: Path, export: Path, report: Path, out: Path, config: Config
) -> None:
    """Record the run in MLflow and register its ONNX model as a new version.

    The store is MLFLOW_TRACKING_URI, or `sqlite:///mlflow.db` in the working folder.

    Args:
        pretrain: folder of the pretrain step.
        train: folder of the train step.
        evaluation: folder of the evaluate step.
        export: folder of the export_onnx step.
        report: folder of the report step.
        out: folder for registration.json, run.json.
        config: `tracking`; recorded in full.

    Raises:
        TrackingError: the store does not answer or refuses.
        DataError: a folder lacks what is to be recorded.
    """
    record = RunRecord("register", config, parents=(export,))
    with atomic_folder(out) as folder:
        registration = register_model(
            config=to_mapping(config),
            config_hash=config_hash(config),
            pretrain=pretrain,
            train=train,
            evaluation=evaluation,
            export=export,
            report=report,
            tracking=config.tracking,
        )
        write_json(folder / "registration.json", dataclasses.asdict(registration))
        record.write(folder)
