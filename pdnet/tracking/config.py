"""Where runs and models are recorded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow. The store is `MLFLOW_TRACKING_URI`, or `sqlite:///mlflow.db` in the working folder.

    Attributes:
        experiment: name of the MLflow experiment.
        model: name of the registered model.
        licence: under which the weights may be used, for the model card; empty where nobody stated it.
        live: whether a training is on record while it runs; else its curves come with the registration.
    """

    experiment: str = "pdnet"
    model: str = "pdnet"
    licence: str = ""
    live: bool = True
