"""Step 7: the report."""

from __future__ import annotations

from pathlib import Path

from pdnet.config import Config, config_hash, to_mapping
from pdnet.evaluation.report import write_report
from pdnet.steps.lineage import RunRecord


def report(
    *,
    videos: Path,
    validation: Path,
    pretrain: Path,
    train: Path,
    evaluation: Path,
    export: Path,
    out: Path,
    config: Config,
) -> None:
    """Write the run's report, one HTML file that opens from disk.

    Args:
        videos: data set in the MVPS layout, for the pictures.
        validation: folder of the validate step.
        pretrain: folder of the pretrain step.
        train: folder of the train step.
        evaluation: folder of the evaluate step.
        export: folder of the export_onnx step.
        out: folder for index.html.
        config: shown in full.

    Raises:
        DataError: a folder lacks what the report shows.
    """
    record = RunRecord("report", config, parents=(evaluation, export))
    comparison = Path("benchmarks/results/ablation-ipda.json")
    write_report(
        videos=videos,
        validation=validation,
        pretrain=pretrain,
        train=train,
        evaluation=evaluation,
        export=export,
        out=out,
        config=to_mapping(config),
        config_hash=config_hash(config),
        resolution=config.data.resolution,
        comparison=comparison if comparison.is_file() else None,
    )
    record.write(out)
