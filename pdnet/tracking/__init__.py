"""The record of models: MLflow runs, versions of the registered model, and which of them is in use.

Written by `register`:

    release       all that a version holds, in one folder that stands for itself
    record        what is recorded of a pipeline run; curves, figures, samples, card are parts of it
    pyfunc        the release as a model that MLflow serves; served_model is the script that runs there
    registry      both into the store
    outcome       a pipeline run that did not succeed

Written while a training runs:

    live          what the training calls
    journal       on disk first
    recorder      the process that sends it
    delivery      how a journal becomes a run; also what `pdnet track sync` does

Read afterwards:

    store         the connection
    versions      looked up and fetched
    lineage       where a version came from

Which version is in use:

    promotion       policy and judgement, without a store
    promotion_log   who moved what, when and why
    promotion_lock  one moves, the others wait
    aliases         champion and previous: what is moved, in which order, and what a crash left
"""

from __future__ import annotations

from pdnet.tracking.config import TrackingConfig
from pdnet.tracking.outcome import record_outcome
from pdnet.tracking.promotion import PromotionPolicy, Verdict
from pdnet.tracking.registry import Registration, register_model

__all__ = [
    "PromotionPolicy",
    "Registration",
    "TrackingConfig",
    "Verdict",
    "record_outcome",
    "register_model",
]
