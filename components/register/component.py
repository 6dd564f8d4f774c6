"""The run on record, the model in the registry, promoted where the policy allows."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Markdown, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(
    params: str,
    code: str,
    image: str,
    workspace: str,
    md5: str,
    dataset: Input[Dataset],
    validation: Input[Artifact],
    mlflow_uri: str,
    experiment: str,
    policy: str,
    pretrain: Input[Model],
    train: Input[Model],
    evaluation: Input[Artifact],
    export: Input[Model],
    report: Input[Artifact],
    out: Output[Artifact],
    registration: Output[Markdown],
    tensorrt: Input[Model] = None,
):
    """Record the run in MLflow, register its model, and promote it where the policy allows.

    Args:
        params: text of the params file.
        code: commit of the code.
        image: container image that the tasks run.
        workspace: folder that the tasks of a run share.
        md5: of the data folder, as data.dvc gives it.
        dataset: pointer to the data, on which a champion of other data is scored again.
        validation: folder of the validate step.
        mlflow_uri: the tracking server; empty for that of the environment.
        experiment: where the run is recorded; empty for that of the params file.
        policy: text of the promotion policy; empty for no promotion.
        pretrain: folder of the pretrain step.
        train: folder of the train step.
        evaluation: folder of the evaluate step.
        export: folder of the export_onnx step.
        report: folder of the report step.
        out: folder of the register step.
        registration: what was registered, for people.
        tensorrt: folder of the export_tensorrt step, where there is one.
    """
    from pathlib import Path

    from pdnet.container import headline, registration_card, task
    from pdnet.steps import register

    with task(
        "register",
        params=params,
        workspace=workspace,
        code=code,
        image=image,
        mlflow_uri=mlflow_uri,
        experiment=experiment,
    ) as run:
        folder, rules = Path(out.path), run.file("promotion.yaml", policy)
        register(
            validation=Path(validation.path),
            pretrain=Path(pretrain.path),
            train=Path(train.path),
            evaluation=Path(evaluation.path),
            export=Path(export.path),
            report=Path(report.path),
            out=folder,
            tensorrt=Path(tensorrt.path) if tensorrt else None,
            policy=rules,
            videos=run.footage(Path(dataset.path), md5).videos if rules else None,
            config=run.config,
        )
        Path(registration.path).write_text(registration_card(folder))
        out.metadata.update(headline(folder))
