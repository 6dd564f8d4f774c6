"""Step 2: the rules that training relies on."""

from __future__ import annotations

import logging
from pathlib import Path

from pdnet.config import Config
from pdnet.data.index import index_clips, index_stills
from pdnet.errors import ValidationError
from pdnet.files import atomic_folder, write_json
from pdnet.steps.run_record import RunRecord
from pdnet.validation import clip_table, frame_table, still_table, validate_tables, write_report

logger = logging.getLogger("pdnet.steps.validate")


def validate(*, videos: Path, images: Path, out: Path, config: Config) -> None:
    """Check every clip, frame and still, and write the findings.

    Args:
        videos: data set in the MVPS layout.
        images: image set.
        out: folder of the findings: index.html, summary.json, the tables, data docs, run.json; and data.json, the
            verdict and the digests alone, on which training depends.
        config: `data` and `validation`.

    Raises:
        ValidationError: a rule is broken that does more than warn; the findings are written all the same.
        DataError: the layout cannot be read at all.
    """
    with atomic_folder(out) as folder:
        listed = index_clips(videos, resolution=config.data.resolution, complete=False)
        pairs = index_stills(images, complete=False)
        record = RunRecord("validate", config, data={"videos": videos, "images": images})
        frames, stills = frame_table(listed), still_table(pairs)
        clips = clip_table(frames, config.validation)
        result = validate_tables(frames, clips, stills, config.validation)
        write_report(result, folder)
        record.write(folder, success=result.success)
        write_json(folder / "data.json", {"valid": result.success, "data": record.facts["data"]})
    for line in result.warnings:
        logger.warning("warning: %s", line)
    if not result.success:
        raise ValidationError(f"{result.headline}; report: {out / 'index.html'}")
