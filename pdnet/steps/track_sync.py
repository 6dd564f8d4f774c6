"""Send later what a training could not send while it ran."""

from __future__ import annotations

import logging
from pathlib import Path

from pdnet.errors import TrackingError
from pdnet.tracking.delivery import sync

logger = logging.getLogger("pdnet.tracking")


def track_sync(*, buffer: Path | None = None) -> str:
    """Send the recordings of trainings that MLflow did not get while they ran; what it has already is not sent twice.

    A training that still runs is left alone, and so is one that was recorded for another store. One that was killed
    stands as KILLED, until it goes on.

    Args:
        buffer: folder of the recordings; PDNET_MLFLOW_BUFFER, else mlflow-buffer in the working folder, where not
            given.

    Returns:
        A line a recording: what was sent, and where it is to be found.

    Raises:
        TrackingError: the store does not answer or refuses; nothing is lost.
    """
    lines: list[str] = []
    try:
        for result in sync(buffer):
            lines.append(result.line)
    except TrackingError:  # which has an exit code; what was done before is told too
        for line in lines:
            logger.warning("%s", line)
        raise
    return "\n".join(lines)
