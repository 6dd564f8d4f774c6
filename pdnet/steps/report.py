"""Step 7: the report."""

from __future__ import annotations

from pathlib import Path

from pdnet.config import Config, config_hash, to_mapping
from pdnet.evaluation.report import write_report
from pdnet.files import atomic_folder, read_object
from pdnet.steps.run_record import RunRecord

#: the same recipe without IPDA, measured by `make ablation`
ABLATION = Path("benchmarks/results/ablation-ipda.json")


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
        out: folder for index.html, run.json.
        config: shown in full.

    Raises:
        DataError: a folder lacks what the report shows.
    """
    record = RunRecord("report", config, parents=(evaluation, export))
    with atomic_folder(out) as folder:
        write_report(
            videos=videos,
            validation=validation,
            pretrain=pretrain,
            train=train,
            evaluation=evaluation,
            export=export,
            out=folder,
            config=to_mapping(config),
            config_hash=config_hash(config),
            resolution=config.data.resolution,
            comparison=ABLATION if _fits(ABLATION, record) else None,
        )
        record.write(folder)


def _fits(comparison: Path, record: RunRecord) -> bool:
    """Whether a comparison was measured with this run's parameters and data."""
    if not comparison.is_file():
        return False
    facts = read_object(comparison, ("config_hash", "data_md5"))
    data = record.facts.get("data", {}).get("videos", {}).get("md5")
    return bool(facts["config_hash"] == record.facts["config_hash"] and facts["data_md5"] == data)
