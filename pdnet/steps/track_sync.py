"""Send later what a training could not send while it ran."""

from __future__ import annotations

from pathlib import Path

from pdnet.tracking.delivery import sync


def track_sync(*, buffer: Path | None = None) -> str:
    """Send the recordings of trainings that MLflow did not get while they ran; what it has already is not sent twice.

    A training that still runs is left alone. One that was killed stands as KILLED, until it goes on.

    Args:
        buffer: folder of the recordings; PDNET_MLFLOW_BUFFER, else mlflow-buffer in the working folder, where not
            given.

    Returns:
        A line a recording: what was sent, and where it is to be found.

    Raises:
        TrackingError: MLFLOW_TRACKING_URI is not set, or the store does not answer or refuses; nothing is lost.
    """
    return "\n".join(sync(buffer))
