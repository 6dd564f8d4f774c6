"""A folder of frames in, a folder of masks out."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from PIL import Image

from pdnet.data.io import find_images, read_image
from pdnet.devices import pick_device
from pdnet.errors import CheckpointError, DataError
from pdnet.files import atomic_folder
from pdnet.inference.session import PortraitSession, prepare
from pdnet.progress import track
from pdnet.weights import load_model, model_facts


def predict_folder(frames: Path, out: Path, *, model: Path, device: str = "auto") -> tuple[float, int]:
    """Segment the frames of one clip in order of name; the first is the reference.

    Args:
        frames: folder of images.
        out: folder for the masks, `<stem>.png`, grey {0, 255}; replaced whole.
        model: file of `pdnet train` or `pdnet import-checkpoint`.
        device: `auto` or a torch device name.

    Returns:
        Frames a second from file to file, and how many frames there were.

    Raises:
        DataError: the folder is missing or empty, a frame cannot be read, or `out` is the folder of the frames.
        CheckpointError: the model file is missing or damaged, or does not say its input size.
    """
    if Path(frames).is_file():
        raise DataError(f"{frames}: a file; expected a folder of frames")
    paths = find_images(frames)
    if not paths:
        raise DataError(f"{frames}: no images")
    if out.resolve() == frames.resolve():
        raise DataError(f"{out}: the masks would replace the frames; expected another folder")
    network = prepare(load_model(model), pick_device(device))
    size = model_facts(model).get("size")
    if not isinstance(size, int):
        raise CheckpointError(f"{model}: does not say the size of the network's input; expected the fact 'size'")
    session: PortraitSession | None = None
    started = time.perf_counter()
    with atomic_folder(out) as folder:
        for stem, path in track(paths.items(), "predict"):
            frame = read_image(path)
            if session is None:
                session = PortraitSession(network, size=size, reference=frame)
            mask = session.step(frame).probability >= 0.5
            Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(folder / f"{stem}.png")
    return len(paths) / (time.perf_counter() - started), len(paths)
