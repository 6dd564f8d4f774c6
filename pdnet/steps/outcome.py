"""The exit handler's step: a pipeline run that failed is on record too."""

from __future__ import annotations

from pdnet.config import Config
from pdnet.tracking import record_outcome
from pdnet.tracking.delivery import send_leftovers


def outcome(*, state: str, run: str, message: str, config: Config) -> None:
    """Record in MLflow how a pipeline run ended; one that succeeded was recorded by `register`.

    What a training could not send while it ran is sent first.

    Args:
        state: final state of the run, in Kubeflow's words (SUCCEEDED, FAILED, CANCELLED, ...).
        run: name of the pipeline run.
        message: why it ended so; may have many lines.
        config: `tracking`.

    Raises:
        TrackingError: the store does not answer or refuses.
    """
    send_leftovers()
    record_outcome(state, run, message, config.tracking)
