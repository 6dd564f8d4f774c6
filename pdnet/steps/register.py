"""Step 8: the run on record, the model in the registry, and promoted where the policy allows."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from pdnet.config import Config, config_hash, load_yaml, to_mapping
from pdnet.files import atomic_folder, write_json
from pdnet.steps.promote import judge_and_promote
from pdnet.steps.run_record import RunRecord
from pdnet.tracking import PromotionPolicy, register_model
from pdnet.tracking.delivery import send_leftovers

logger = logging.getLogger("pdnet.steps.register")


def register(
    *,
    validation: Path,
    pretrain: Path,
    train: Path,
    evaluation: Path,
    export: Path,
    report: Path,
    out: Path,
    config: Config,
    tensorrt: Path | None = None,
    policy: Path | None = None,
    videos: Path | None = None,
) -> None:
    """Record the run in MLflow and register its model as a new version.

    The store is MLFLOW_TRACKING_URI, or `sqlite:///mlflow.db` in the working folder. A version that the policy
    refuses stays registered, with the reason; that is no failure of this step.

    Args:
        validation: folder of the validate step.
        pretrain: folder of the pretrain step.
        train: folder of the train step.
        evaluation: folder of the evaluate step.
        export: folder of the export_onnx step.
        report: folder of the report step.
        out: folder for registration.json, run.json.
        config: `tracking`; recorded in full.
        tensorrt: folder of the export_tensorrt step, where there is one.
        policy: YAML file that says when the new version becomes the champion; without it none does.
        videos: data set in the MVPS layout, on which a champion that was scored on other data is scored again.

    Raises:
        TrackingError: the store does not answer or refuses.
        DataError: a folder lacks what is to be recorded, or a file is not the one that another step looked at.
        ConfigError: the policy is missing or damaged.
    """
    send_leftovers()  # what a training could not say while it ran, before its run is completed from the log
    rules = load_yaml(PromotionPolicy, policy, what="a promotion policy") if policy else None
    record = RunRecord("register", config, parents=(export, tensorrt) if tensorrt else (export,))
    with atomic_folder(out) as folder:
        registration = register_model(
            config=to_mapping(config),
            config_hash=config_hash(config),
            validation=validation,
            pretrain=pretrain,
            train=train,
            evaluation=evaluation,
            export=export,
            report=report,
            tensorrt=tensorrt,
            tracking=config.tracking,
        )
        facts = dataclasses.asdict(registration)
        if rules:
            verdict = judge_and_promote(version=registration.version, policy=rules, videos=videos, config=config)
            facts["promotion"] = dataclasses.asdict(verdict)
        write_json(folder / "registration.json", facts)
        record.write(
            folder,
            mlflow_run_id=registration.run_id,
            model=registration.model,
            model_version=registration.version,
        )
    done = "registered" if registration.new else "the same model, is registered already"
    logger.info("%s version %s: %s in %s", registration.model, registration.version, done, registration.tracking_uri)
