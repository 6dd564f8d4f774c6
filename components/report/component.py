"""The run as one page."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(
    params: str,
    code: str,
    image: str,
    workspace: str,
    md5: str,
    dataset: Input[Dataset],
    validation: Input[Artifact],
    pretrain: Input[Model],
    train: Input[Model],
    evaluation: Input[Artifact],
    export: Input[Model],
    out: Output[Artifact],
    page: Output[HTML],
):
    """Write the run's report: tables, curves, overlays, part maps, all inside one page.

    Args:
        params: text of the params file.
        code: commit of the code.
        image: container image that the tasks run.
        workspace: folder that the tasks of a run share.
        md5: of the data folder, as data.dvc gives it.
        dataset: pointer to the data, for the pictures.
        validation: folder of the validate step.
        pretrain: folder of the pretrain step.
        train: folder of the train step.
        evaluation: folder of the evaluate step.
        export: folder of the export_onnx step.
        out: folder of the report step.
        page: the report.
    """
    import shutil
    from pathlib import Path

    from pdnet.container import headline, task
    from pdnet.steps import report

    with task("report", params=params, workspace=workspace, code=code, image=image) as run:
        videos, _ = run.footage(Path(dataset.path), md5)
        folder = Path(out.path)
        report(
            videos=videos,
            validation=Path(validation.path),
            pretrain=Path(pretrain.path),
            train=Path(train.path),
            evaluation=Path(evaluation.path),
            export=Path(export.path),
            out=folder,
            config=run.config,
        )
        shutil.copyfile(folder / "index.html", page.path)
        out.metadata.update(headline(folder))
