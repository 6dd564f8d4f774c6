"""Where runs and models are recorded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow. The store is `MLFLOW_TRACKING_URI`, or `sqlite:///mlflow.db` in the working folder.

    Attributes:
        experiment: name of the MLflow experiment.
        model: name of the registered model.
    """

    experiment: str = "pdnet"
    model: str = "pdnet"
