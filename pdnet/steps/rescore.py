"""A registered model on data of the caller's: its own weights and input size, the same frames for every model."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from pdnet.data.index import index_clips
from pdnet.devices import pick_device
from pdnet.evaluation.config import ScoringProtocol
from pdnet.evaluation.evaluate import score_table
from pdnet.evaluation.scoring import summarise
from pdnet.inference.session import PortraitSession
from pdnet.inference.torch_backend import TorchBackend
from pdnet.tracking.release import Release
from pdnet.weights import load_model

logger = logging.getLogger("pdnet.steps.rescore")


def rescore(
    release: Release, videos: Path, *, resolution: str, protocol: ScoringProtocol, device: str, label: str
) -> pd.DataFrame:
    """Segment and score the validation clips of a data set with the network of a release.

    Args:
        release: its `model.safetensors` is run, as its `params.yaml` says: input size and threshold.
        videos: data set in the MVPS layout.
        resolution: of its frames and annotations, the folder `Keyframes/<resolution>`.
        protocol: which frames count.
        device: torch device, or `auto`.
        label: what the progress is called.

    Returns:
        A row a clip, as `clips.parquet` holds it.

    Raises:
        DataError: a frame cannot be read, or there is no validation clip.
        CheckpointError: the model file is damaged.
    """
    # Not parsed as `Config`: parameters of another version of pdnet may have other keys.
    size, threshold = release.config["data"]["size"], release.config["evaluation"]["threshold"]
    frames = index_clips(videos, resolution=resolution, splits=("val",))
    backend = TorchBackend(load_model(release.weights), size=size, device=pick_device(device))
    table = score_table(
        lambda reference: PortraitSession(backend, reference=reference),
        frames,
        threshold=threshold,
        label=label,
    )
    return summarise(table, protocol).clips
