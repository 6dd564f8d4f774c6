"""Scores, masks, parts and speed on the validation clips."""

from kfp import dsl
from kfp.dsl import Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    params: str,
    code: str,
    image: str,
    workspace: str,
    md5: str,
    dataset: Input[Dataset],
    model: Input[Model],
    out: Output[Artifact],
    scores: Output[Metrics],
    pixels: Output[ClassificationMetrics],
):
    """Segment and score the validation clips.

    Args:
        params: text of the params file.
        code: commit of the code.
        image: container image that the tasks run.
        workspace: folder that the tasks of a run share.
        md5: of the data folder, as data.dvc gives it.
        dataset: pointer to the data.
        model: folder of the train step.
        out: folder of the evaluate step.
        scores: J&F, its parts and FPS.
        pixels: confusion matrix of the pixels.
    """
    import shutil
    from pathlib import Path

    from pdnet.container import confusion, figures, headline, task
    from pdnet.steps import evaluate

    with task("evaluate", params=params, workspace=workspace, code=code, image=image) as run:
        videos, _ = run.footage(Path(dataset.path), md5)
        folder = Path(out.path)
        evaluate(videos=videos, model=Path(model.path), out=folder, config=run.config)
        out.metadata.update(headline(folder))
        for name, value in figures(folder).items():
            scores.log_metric(name, value)
        pixels.log_confusion_matrix(*confusion(folder))
        for artifact in (scores, pixels):  # figures alone would make no file, and a cache looks for one
            shutil.copyfile(folder / "scores.json", artifact.path)
