"""A data set drawn from code, for those who have none yet."""

from __future__ import annotations

from pathlib import Path

from pdnet.data.synthetic import generate
from pdnet.progress import tracker


def synthesise(*, out: Path, preset: str = "mini", seed: int = 0) -> None:
    """Make the synthetic data set: an MVPS-shaped folder and its image set below `Stills/`.

    Args:
        out: folder of the data set; must not exist or be empty.
        preset: size of the set: mini (14 clips) or tiny (for tests).
        seed: same seed, same bytes.

    Raises:
        DataError: `out` holds something already, or the preset is unknown.
    """
    generate(out, preset=preset, seed=seed, progress=tracker("synthesise"))
