"""The encoder on single images."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pretrain(
    params: str,
    code: str,
    image: str,
    workspace: str,
    mlflow_uri: str,
    experiment: str,
    md5: str,
    gpus: int,
    dataset: Input[Dataset],
    validation: Input[Artifact],
    out: Output[Model],
):
    """Train the encoder on single images; a retried task goes on from its last checkpoint.

    Args:
        params: text of the params file.
        code: commit of the code.
        image: container image that the tasks run.
        workspace: folder that the tasks of a run share.
        mlflow_uri: the tracking server, which gets the curves while it trains; empty for that of the environment.
        experiment: where the run is recorded; empty for that of the params file.
        md5: of the data folder, as data.dvc gives it.
        gpus: processes to train in; 0 and 1 are one.
        dataset: pointer to the data.
        validation: folder of the validate step.
        out: folder of the pretrain step.
    """
    from pathlib import Path

    from pdnet.container import headline, task
    from pdnet.steps import pretrain

    with task(
        "pretrain",
        params=params,
        workspace=workspace,
        code=code,
        image=image,
        mlflow_uri=mlflow_uri,
        experiment=experiment,
    ) as run:
        _, images = run.footage(Path(dataset.path), md5)
        run.launch(
            pretrain,
            processes=gpus,
            images=images,
            validation=Path(validation.path),
            out=Path(out.path),
            checkpoints=run.checkpoints,
        )
        out.metadata.update(headline(Path(out.path)))
