"""A finished pipeline run becomes one MLflow run and one version of the registered model."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pdnet.tracking.config import TrackingConfig
from pdnet.tracking.record import Record, read_record
from pdnet.tracking.samples import write_samples
from pdnet.tracking.store import Store, experiment_id, open_store, origin_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

T = TypeVar("T")

#: The alias of the newest version.
CANDIDATE = "candidate"

_METRICS_PER_CALL = 1000
_PARAMS_PER_CALL = 100


@dataclass(frozen=True)
class Registration:
    """Where a model is on record; `dataclasses.asdict` gives what `registration.json` holds.

    Attributes:
        tracking_uri: the store, without secrets; as given, so a relative path is one of the working folder.
        experiment: its name.
        experiment_id: its id in the store.
        run_id: the run.
        run_artifact_uri: where the run's files are.
        model: name of the registered model.
        version: its new version.
        model_uri: what `mlflow.pyfunc.load_model` takes.
        model_artifact_uri: where the files of this version are.
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


def register_model(
    *,
    config: Mapping[str, Any],
    config_hash: str,
    train: Path,
    pretrain: Path,
    evaluation: Path,
    export: Path,
    report: Path | None,
    tensorrt: Path | None = None,
    tracking: TrackingConfig,
) -> Registration:
    """Record a pipeline run in MLflow and register its ONNX model as a new version with the alias `candidate`.

    Where MLFLOW_RUN_ID names a run, as Kubeflow's MLflow plugin does, the new run is its child.

    All or nothing: after a failure there is no new version and no half-written model, and the run stands as FAILED
    with what had been logged. Calling twice gives two runs and two versions.

    Args:
        config: the resolved configuration as plain values (`pdnet.config.to_mapping`).
        config_hash: its hash.
        train: folder of the train step.
        pretrain: folder of the pretrain step.
        evaluation: folder of the evaluate step.
        export: folder of the export step.
        report: folder of the report step; None where there is none.
        tensorrt: folder of the export_tensorrt step; None where there is none.
        tracking: names of experiment and model.

    Raises:
        DataError: a folder lacks a file that its step writes.
        ExportError: an exported file is not the one whose agreement with the network was measured.
        TrackingError: the store does not answer or refuses.
    """
    record = read_record(
        config,
        config_hash,
        train=train,
        pretrain=pretrain,
        evaluation=evaluation,
        export=export,
        report=report,
        tensorrt=tensorrt,
    )
    with tempfile.TemporaryDirectory() as scratch:
        samples = write_samples(evaluation, Path(scratch))
        with open_store() as store:
            return _register(store, record, samples, tracking, run_name=f"{tracking.model} {config_hash}")


def _register(
    store: Store, record: Record, samples: Sequence[Path], tracking: TrackingConfig, *, run_name: str
) -> Registration:
    """Run, model, version, alias, in this order; `undo` takes back what is there when one of them fails."""
    client = store.client
    experiment = experiment_id(store, tracking.experiment)
    _ensure_registered_model(client, tracking.model)
    with contextlib.ExitStack() as undo:
        run = client.create_run(experiment, run_name=run_name, tags=_run_tags(record))
        run_id = run.info.run_id
        undo.callback(_quietly, client.set_terminated, run_id, "FAILED")
        _log_params(client, run_id, record.params)
        _log_datasets(client, run_id, record)
        _log_files(client, run_id, record, samples)

        logged = client.create_logged_model(
            experiment, name="onnx", source_run_id=run_id, tags=record.version_tags, params=record.params
        )
        undo.callback(_quietly, client.delete_logged_model, logged.model_id)
        _log_model(record.onnx, run_id, logged.model_id)
        # After the model: MLflow copies what the run holds at step 0 to a model, and a first loss is no figure of it.
        _log_metrics(client, run_id, [*_final_metrics(record, logged.model_id), *_curve_metrics(record)])

        version = client.create_model_version(
            tracking.model,
            source=f"models:/{logged.model_id}",
            run_id=run_id,
            model_id=logged.model_id,
            tags=record.version_tags,
        )
        undo.callback(_quietly, client.delete_model_version, tracking.model, version.version)
        _link(client, logged.model_id, tracking.model, str(version.version))
        client.set_terminated(run_id)
        client.set_registered_model_alias(tracking.model, CANDIDATE, version.version)
        undo.pop_all()
    return Registration(
        tracking_uri=store.uri,
        experiment=tracking.experiment,
        experiment_id=experiment,
        run_id=run_id,
        run_artifact_uri=run.info.artifact_uri,
        model=tracking.model,
        version=str(version.version),
        model_uri=f"models:/{tracking.model}/{version.version}",
        model_artifact_uri=logged.artifact_location,
    )


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    """Make the registered model where it is new; a name that the registry refuses is refused before any work."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
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

    for batch in _batches([Param(key, value) for key, value in params.items()], _PARAMS_PER_CALL):
        client.log_batch(run_id, params=batch)


def _log_metrics(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> None:
    for batch in _batches(metrics, _METRICS_PER_CALL):
        client.log_batch(run_id, metrics=batch)


def _curve_metrics(record: Record) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(point.name, point.value, point.time_ms, point.step) for point in record.curves]


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


def _log_files(client: MlflowClient, run_id: str, record: Record, samples: Sequence[Path]) -> None:
    client.log_text(run_id, record.config_yaml, "params.yaml")
    for path, folder in (*record.files, *((sample, "samples") for sample in samples)):
        client.log_artifact(run_id, str(path), folder)


def _log_model(path: Path, run_id: str, model_id: str) -> None:
    """Log the ONNX model as one file, byte for byte what was exported, with a signature and pinned requirements."""
    import mlflow.onnx
    import onnx

    model = onnx.load(path)
    mlflow.onnx.log_model(
        model,
        name="onnx",
        run_id=run_id,
        model_id=model_id,
        signature=_signature(model.graph),
        pip_requirements=mlflow.onnx.get_default_pip_requirements(),  # else MLflow runs the model to guess them
        save_as_external_data=False,
    )


def _signature(graph: Any) -> Any:
    """The graph's tensors as an MLflow signature; a dimension without a number is -1."""
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(values: Any) -> Any:
        specs: list[Any] = []
        for value in values:
            kind = value.type.tensor_type
            shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in kind.shape.dim)
            specs.append(TensorSpec(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type), shape, value.name))
        return Schema(specs)

    return ModelSignature(inputs=schema(graph.input), outputs=schema(graph.output))


def _link(client: MlflowClient, model_id: str, name: str, version: str) -> None:
    """Let the model's page name the version; MLflow finds it by this tag."""
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": version}])})


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _quietly(action: Callable[..., Any], *arguments: Any) -> None:
    """Undo as far as the store lets us: the error that is on its way to the user matters more."""
    with contextlib.suppress(Exception):
        action(*arguments)
