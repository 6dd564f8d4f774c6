"""Step 2: the rules that training relies on."""

from __future__ import annotations

import logging
from pathlib import Path

from pdnet.config import Config
from pdnet.data.index import index_clips, index_stills
from pdnet.errors import ValidationError
from pdnet.files import atomic_folder, folder_digest
from pdnet.steps.lineage import RunRecord, dvc_md5
from pdnet.validation import clip_table, frame_table, still_table, validate_tables, write_report

logger = logging.getLogger("pdnet.steps.validate")


def validate(*, videos: Path, images: Path, out: Path, config: Config) -> None:
    """Check every clip, frame and still, and write the findings.

    Args:
        videos: data set in the MVPS layout.
        images: image set.
        out: folder of the findings: index.html, summary.json, the tables, data docs.
        config: `data` and `validation`.

    Raises:
        ValidationError: a rule is broken that does more than warn; the findings are written all the same.
        DataError: the layout cannot be read at all.
    """
    record = RunRecord("validate", config)
    with atomic_folder(out) as folder:
        frames = frame_table(index_clips(videos, resolution=config.data.resolution))
        clips = clip_table(frames, config.validation)
        stills = still_table(index_stills(images))
        result = validate_tables(frames, clips, stills, config.validation)
        write_report(result, folder)
        facts = {}
        for name, root in (("videos", videos), ("images", images)):
            md5, files, size = folder_digest(root)
            facts[name] = {"path": str(root), "md5": md5, "files": files, "bytes": size}
        record.write(folder, data=facts, data_dvc=dvc_md5(Path("data.dvc"), videos), success=result.success)
    for line in result.warnings:
        logger.warning("warning: %s", line)
    if not result.success:
        raise ValidationError(f"{result.headline}; report: {out / 'index.html'}")
