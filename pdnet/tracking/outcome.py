"""A pipeline run that did not succeed, on record beside those that did."""

from __future__ import annotations

import logging

from pdnet.tracking.config import TrackingConfig
from pdnet.tracking.record import cut
from pdnet.tracking.store import experiment_id, open_store, origin_tags

#: Longest value of a run's tag, the description among them.
MAX_TAG = 8000
#: Longest name of a run: the width of MLflow's column.
MAX_NAME = 250

logger = logging.getLogger(__name__)


def record_outcome(state: str, run: str, message: str, tracking: TrackingConfig) -> str | None:
    """Record how a pipeline run ended, unless it succeeded, which `register_model` records.

    The run `failed <run>` stands as FAILED, or as KILLED where somebody cancelled it.

    Args:
        state: final state in Kubeflow's words: SUCCEEDED, SKIPPED, FAILED, CANCELLED, ...
        run: name of the pipeline run.
        message: why, in any number of lines.
        tracking: name of the experiment.

    Returns:
        The id of the MLflow run; None where nothing is recorded.

    Raises:
        TrackingError: the store does not answer or refuses.
    """
    if state.upper() in ("SUCCEEDED", "SKIPPED"):
        return None
    reason = message.strip() or "no message"
    tags = {
        "kubeflow.run": cut(run, MAX_TAG),
        "outcome.state": state or "UNKNOWN",
        "outcome.message": cut(reason.splitlines()[0], MAX_TAG),
        "mlflow.note.content": cut(reason, MAX_TAG),
        "mlflow.source.name": "pdnet outcome",
    }
    with open_store() as store:
        experiment = experiment_id(store, tracking.experiment)
        recorded = store.client.create_run(
            experiment, run_name=cut(f"failed {run}", MAX_NAME), tags=origin_tags() | tags
        )
        run_id = str(recorded.info.run_id)
        store.client.set_terminated(run_id, "KILLED" if state.upper().startswith("CANCEL") else "FAILED")
    logger.info("%s: %s, recorded as run %s of experiment %s", run, state, run_id, tracking.experiment)
    return run_id
