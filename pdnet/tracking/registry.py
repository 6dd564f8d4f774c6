"""A finished pipeline run becomes one MLflow run with a run for each step, and one version of the registered model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pdnet.files import file_digest
from pdnet.tracking.card import model_card
from pdnet.tracking.config import TrackingConfig
from pdnet.tracking.delivery import TRAINING_TAG
from pdnet.tracking.figures import write_figures
from pdnet.tracking.pyfunc import SCRIPT, save_served_model, served_digest
from pdnet.tracking.record import Point, Record, StepRecord, read_record
from pdnet.tracking.release import RELEASE, Release, present, write_release
from pdnet.tracking.samples import write_samples
from pdnet.tracking.store import Store, experiment_id, log_metrics, open_store, origin_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

#: The alias of the version that was registered last.
CANDIDATE = "candidate"
#: The tag of a run that belongs to another, as MLflow's page nests them.
PARENT = "mlflow.parentRunId"
#: The tag of a version by which a second registration of the same model is recognised.
IDENTITY = "identity"

#: Of the registered model, on its page.
_DESCRIPTION = """Video portrait segmentation with PDNet: frames or a video in, masks out.

`champion` is the version to use, `previous` the champion before it, `candidate` the version that was registered last.
`pdnet promote`, `pdnet rollback` move them; `pdnet lineage` tells where a version came from."""
_PARAMS_PER_CALL = 100


@dataclass(frozen=True)
class Registration:
    """Where a model is on record; `dataclasses.asdict` gives what `registration.json` holds.

    Attributes:
        tracking_uri: the store, without secrets; as given, so a relative path is one of the working folder.
        experiment: its name.
        experiment_id: its id in the store.
        run_id: the run of the model; those of the steps are its children.
        run_artifact_uri: where the run's files are.
        model: name of the registered model.
        version: its version.
        model_uri: what `mlflow.pyfunc.load_model` takes.
        model_artifact_uri: where the files of this version are.
        new: whether this call made the version; else the same model was there already.
    """

    tracking_uri: str
    experiment: str
    experiment_id: str
    run_id: str
    run_artifact_uri: str
    model: str
    version: str
    model_uri: str
    model_artifact_uri: str
    new: bool


class _Files(NamedTuple):
    """What is made for the record before the store is asked for anything."""

    model: Path  #: the MLflow model, with the release in it
    served: str  #: digest of the rest of it
    pictures: tuple[tuple[Path, str], ...]  #: each with its folder in the run
    card: str


def register_model(
    *,
    config: Mapping[str, Any],
    config_hash: str,
    validation: Path,
    pretrain: Path,
    train: Path,
    evaluation: Path,
    export: Path,
    report: Path | None,
    tensorrt: Path | None = None,
    tracking: TrackingConfig,
) -> Registration:
    """Record a pipeline run in MLflow and register its model as a new version with the alias `candidate`.

    The run of the model holds parameters, lineage, figures and files; each step has a run of its own beneath it: the
    one that it wrote into while it ran, where there is one, else one made now from its folder. Where Kubeflow's MLflow
    plugin names a run in MLFLOW_RUN_ID, the pipeline's run there is the run of the model.

    The same release (configuration, weights, exported files, evaluation) is registered once: a second call finds its
    version and makes it the candidate. All or nothing: after a failure there is no new version and no half-written
    model, and the run stands as FAILED with what had been logged.

    Args:
        config: the resolved configuration as plain values (`pdnet.config.to_mapping`).
        config_hash: its hash.
        validation: folder of the validate step.
        pretrain: folder of the pretrain step.
        train: folder of the train step.
        evaluation: folder of the evaluate step.
        export: folder of the export_onnx step.
        report: folder of the report step; None where there is none.
        tensorrt: folder of the export_tensorrt step; None where there is none.
        tracking: names of experiment and model, and the licence.

    Raises:
        DataError: a folder lacks a file that its step writes, or a file is not the one that another step looked at.
        TrackingError: the store does not answer or refuses.
    """
    folders = {"validate": validation, "pretrain": pretrain, "train": train, "evaluate": evaluation}
    folders |= {"export_onnx": export} | ({"export_tensorrt": tensorrt} if tensorrt else {})
    with tempfile.TemporaryDirectory() as scratch:
        release = write_release(
            Path(scratch, RELEASE),
            config=config,
            config_hash=config_hash,
            validation=validation,
            pretrain=pretrain,
            train=train,
            evaluation=evaluation,
            export=export,
            tensorrt=tensorrt,
        )
        record = read_record(release, folders | ({"report": report} if report else {}))
        with open_store() as store:
            _ensure_registered_model(store.client, tracking.model)
            if found := _registered(store, release, tracking):
                return found
            files = _write_files(
                release, record, folders, report=report, licence=tracking.licence, scratch=Path(scratch)
            )
            return _register(store, release, record, files, tracking)


def _identity(release: Release) -> str:
    """Sixteen digits that change with all that makes a version another one: its files, and what serves them."""
    content = json.dumps([file_digest(SCRIPT), release.content], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _registered(store: Store, release: Release, tracking: TrackingConfig) -> Registration | None:
    """The version that this release is already, which becomes the candidate; None where there is none."""
    same = f"name = '{tracking.model}' AND tags.{IDENTITY} = '{_identity(release)}'"
    for version in store.client.search_model_versions(same):
        if version.status == "READY" and version.run_id:
            store.client.set_registered_model_alias(tracking.model, CANDIDATE, version.version)
            return _registration(store, tracking, version.run_id, version, new=False)
    return None


def _write_files(
    release: Release,
    record: Record,
    folders: Mapping[str, Path],
    *,
    report: Path | None,
    licence: str,
    scratch: Path,
) -> _Files:
    model, drawn, samples = (scratch / name for name in ("model", "figures", "samples"))
    for folder in (drawn, samples):
        folder.mkdir()
    save_served_model(model, release.folder)
    pictures = [
        *((path, "samples") for path in write_samples(folders["evaluate"], samples)),
        *((path, "figures") for path in write_figures(record.clips, folders["train"], drawn)),
    ]
    pages = [(path, "validation") for path in sorted(folders["validate"].glob("*.html"))]
    pages += [(path, "validation/data_docs") for path in sorted(folders["validate"].glob("data_docs/*.html"))]
    pages += [(present(report / "index.html"), "report")] if report else []
    return _Files(model, served_digest(model), (*pictures, *pages), model_card(release, licence=licence))


def _register(store: Store, release: Release, record: Record, files: _Files, tracking: TrackingConfig) -> Registration:
    """Run, runs of the steps, model, version, alias, in this order; `undo` takes back what is there when one fails."""
    client = store.client
    with contextlib.ExitStack() as undo:
        run_id, experiment, ours = _model_run(store, record, tracking)
        if ours:
            undo.callback(_quietly, client.set_terminated, run_id, "FAILED")
        _log_params(client, run_id, record.params)
        _log_datasets(client, run_id, record)
        _log_files(client, run_id, record, files)
        for step in record.steps:
            _record_step(client, experiment, run_id, step, undo)

        logged = client.create_logged_model(
            experiment, name="pdnet", source_run_id=run_id, tags=record.version_tags, params=record.params
        )
        undo.callback(_quietly, client.delete_logged_model, logged.model_id)
        client.log_model_artifacts(logged.model_id, str(files.model))
        client.finalize_logged_model(logged.model_id, "READY")
        log_metrics(client, run_id, _final_metrics(record, logged.model_id))

        if found := _registered(store, release, tracking):  # another attempt was faster; this one is taken back
            return found
        version = client.create_model_version(
            tracking.model,
            source=f"models:/{logged.model_id}",
            run_id=run_id,
            model_id=logged.model_id,
            tags=record.version_tags | {IDENTITY: _identity(release), "served.sha256": files.served},
            description=files.card,
        )
        undo.callback(_quietly, client.delete_model_version, tracking.model, version.version)
        _link(client, logged.model_id, tracking.model, str(version.version))
        if ours:
            client.set_terminated(run_id)
        client.set_registered_model_alias(tracking.model, CANDIDATE, version.version)
        undo.pop_all()
    return _registration(store, tracking, run_id, version, new=True)


def _registration(store: Store, tracking: TrackingConfig, run_id: str, version: Any, *, new: bool) -> Registration:
    run = store.client.get_run(run_id)
    experiment = store.client.get_experiment(run.info.experiment_id)
    return Registration(
        tracking_uri=store.uri,
        experiment=str(experiment.name),
        experiment_id=str(experiment.experiment_id),
        run_id=run_id,
        run_artifact_uri=str(run.info.artifact_uri),
        model=tracking.model,
        version=str(version.version),
        model_uri=f"models:/{tracking.model}/{version.version}",
        model_artifact_uri=store.client.get_model_version_download_uri(tracking.model, version.version),
        new=new,
    )


def _model_run(store: Store, record: Record, tracking: TrackingConfig) -> tuple[str, str, bool]:
    """The run of the model, its experiment, and whether it is ours to end.

    Kubeflow's plugin gives the pipeline a run, and each task one beneath it, which MLFLOW_RUN_ID names.
    """
    client, tags = store.client, _run_tags(record)
    if given := os.environ.get("MLFLOW_RUN_ID"):
        run_id = client.get_run(given).data.tags.get(PARENT, given)
        for key, value in tags.items():
            if not key.startswith("mlflow."):
                client.set_tag(run_id, key, value)
        return run_id, str(client.get_run(run_id).info.experiment_id), False
    experiment = experiment_id(store, tracking.experiment)
    name = f"{tracking.model} {record.tags['config.hash']}"
    run = client.create_run(experiment, run_name=name, tags=tags)  # of now: its steps may be old, from a cache
    return str(run.info.run_id), experiment, True


def _record_step(
    client: MlflowClient, experiment: str, model_run: str, step: StepRecord, undo: contextlib.ExitStack
) -> None:
    """Record a step beneath the run of the model: in the run that it wrote into itself, else in a new one.

    A run that belongs to another model already stays there: the step's result was taken from a cache.
    """
    run = _live_run(client, experiment, step, model_run)
    if run is None:
        tags = step.tags | origin_tags() | {PARENT: model_run, "mlflow.source.name": f"pdnet {step.step}"}
        tags |= {TRAINING_TAG: step.training} if step.training else {}  # what is sent later finds it by this
        run = client.create_run(experiment, step.started_ms, tags, run_name=step.step)
        undo.callback(_quietly, client.delete_run, run.info.run_id)
        missing = list(step.curves)
    else:
        for key, value in (step.tags | {PARENT: model_run}).items():
            if key not in run.data.tags:
                client.set_tag(run.info.run_id, key, value)
                undo.callback(_quietly, client.delete_tag, run.info.run_id, key)
        known = {
            name: {metric.step for metric in client.get_metric_history(run.info.run_id, name)}
            for name in {point.name for point in step.curves}
        }
        missing = [point for point in step.curves if point.step not in known[point.name]]
    log_metrics(client, run.info.run_id, [*_points(missing), *_figures(step)])
    client.log_artifact(run.info.run_id, str(step.record))
    if run.info.status == "RUNNING" and os.environ.get("MLFLOW_RUN_ID") is None:
        client.set_terminated(run.info.run_id, "FINISHED", step.ended_ms)


def _live_run(client: MlflowClient, experiment: str, step: StepRecord, model_run: str) -> Run | None:
    """The run that a step wrote into, where this store has it and no other model does.

    One that the step could not make, for the store was away, may have been made later; its tag tells.
    """
    from mlflow.exceptions import MlflowException

    run = None
    if step.live_run is not None:
        try:
            run = client.get_run(step.live_run)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    if run is None and step.training is not None:
        found = client.search_runs([experiment], f"tags.`{TRAINING_TAG}` = '{step.training}'", max_results=1)
        run = found[0] if found else None
    if run is None or run.info.run_id == model_run or run.info.lifecycle_stage != "active":
        return None
    if run.info.experiment_id != experiment:  # MLflow nests within an experiment
        return None
    return run if run.data.tags.get(PARENT) in (None, model_run) else None


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    """Make the registered model where it is new; a name that the registry refuses is refused before any work."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=_DESCRIPTION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _run_tags(record: Record) -> dict[str, str]:
    """The lineage, and what MLflow's own page shows of a run's origin."""
    tags = record.tags | origin_tags() | {"mlflow.source.name": "pdnet register"}
    if commit := record.tags.get("git.commit"):
        tags["mlflow.source.git.commit"] = commit
    return tags


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    entities = [Param(key, value) for key, value in params.items()]
    for start in range(0, len(entities), _PARAMS_PER_CALL):
        client.log_batch(run_id, params=entities[start : start + _PARAMS_PER_CALL])


def _points(points: Sequence[Point]) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(point.name, point.value, point.time_ms, point.step) for point in points]


def _figures(step: StepRecord) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(name, value, step.ended_ms, 0) for name, value in step.metrics.items()]


def _final_metrics(record: Record, model_id: str) -> list[Metric]:
    """The figures of the finished model, shown with the run, the model and the clips it was evaluated on."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    videos = next(((data.name, data.digest) for data in record.datasets if data.name == "videos"), (None, None))
    return [Metric(name, value, now, 0, model_id, *videos) for name, value in record.metrics.items()]


def _log_datasets(client: MlflowClient, run_id: str, record: Record) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            Dataset(data.name, data.digest, "local", json.dumps({"uri": data.path}), profile=json.dumps(data.facts)),
            [InputTag("mlflow.data.context", data.use)],
        )
        for data in record.datasets
    ]
    client.log_inputs(run_id, datasets=inputs)


def _log_files(client: MlflowClient, run_id: str, record: Record, files: _Files) -> None:
    for path, folder in files.pictures:
        client.log_artifact(run_id, str(path), folder)
    client.log_table(run_id, record.clips, "clips.json")


def _link(client: MlflowClient, model_id: str, name: str, version: str) -> None:
    """Let the model's page name the version; MLflow finds it by this tag."""
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": version}])})


def _quietly(action: Callable[..., Any], *arguments: Any) -> None:
    """Undo as far as the store lets us: the error that is on its way to the user matters more."""
    with contextlib.suppress(Exception):
        action(*arguments)
