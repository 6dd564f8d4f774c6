"""The record of models: one MLflow run and one registry version for each finished pipeline run.

read_record       the steps' folders as parameters, curves, figures, tags and files     (record.py)
write_samples     pictures for a person                                                 (samples.py)
open_store        the MLflow store: which, quietly, with clear errors                   (store.py)
register_model    the record into the store, the ONNX model into the registry           (registry.py)
judge             whether a version has earned to be the champion                       (promotion.py)
carry_out         the aliases moved: one at a time, whole, and on record                (aliases.py)
record_outcome    a pipeline run that did not succeed                                   (outcome.py)
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
