"""What several test files need: a small drawn data set, real data where there are some, and restraint with threads."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# Before torch is imported. One thread is enough for pictures this small, here and in the commands that tests start;
# several wait for each other for long where other work keeps the cores busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that starts the tests in the background tells them to ignore interrupts, and so the commands that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real clips and images, named by the environment variable PDNET_SHARED."""
    folder = os.environ.get("PDNET_SHARED")
    if not folder:
        pytest.skip("PDNET_SHARED is not set: it names a folder with real clips and images")
    return Path(folder)


@pytest.fixture(scope="session")
def portraits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in the MVPS layout: two training clips, one for validation, and `Stills/`. Copy it to change it."""
    root = tmp_path_factory.mktemp("drawn") / "mvps"
    splits = {"train": ("talk/a", "dance/b"), "val": ("talk/c",)}
    (root / "ImageSets").mkdir(parents=True)
    for split, clips in splits.items():
        (root / "ImageSets" / f"{split}.txt").write_text("".join(f"{clip}\n" for clip in clips))
        for clip in clips:
            for position in range(6):
                draw_portrait(
                    root / "Keyframes" / "480p" / clip / f"{5 * position:05d}.jpg",
                    root / "Annotations" / "480p" / clip / f"{5 * position:05d}.png",
                    middle=(0.3 + 0.06 * position, 0.5 + 0.02 * ord(clip[-1]) % 0.1),
                    hue=ord(clip[-1]) % 3,
                )
    for index in range(5):
        draw_portrait(
            root / "Stills" / "Images" / f"{index:03d}.jpg",
            root / "Stills" / "Labels" / f"{index:03d}.png",
            middle=(0.35 + 0.07 * index, 0.5),
            hue=index % 3,
            shape=(70 + 2 * index, 80),
        )
    return root


def draw_portrait(
    image: Path, mask: Path, *, middle: tuple[float, float], hue: int, shape: tuple[int, int] = (72, 96)
) -> None:
    """Draw a head on shoulders before a striped wall; `middle` is (x, y) in 0..1, `shape` (height, width)."""
    height, width = shape
    y, x = np.mgrid[:height, :width] / min(shape)
    x0, y0 = middle[0] * width / min(shape), middle[1] * height / min(shape)
    head = (x - x0) ** 2 + (y - y0 + 0.12) ** 2 < 0.15**2
    body = ((x - x0) / 0.28) ** 2 + ((y - y0 - 0.4) / 0.4) ** 2 < 1
    portrait = head | body
    picture = np.empty((height, width, 3))
    picture[:] = (100 + 40 * np.sin(25 * x + 9 * y))[..., None]
    picture[body] = (40, 40, 40)
    picture[body, hue] = 210
    picture[head] = (225, 175, 145)
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.astype(np.uint8)).save(image, quality=92)
    Image.fromarray(portrait.astype(np.uint8) * np.uint8(255)).save(mask)
