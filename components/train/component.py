"""The paper's recipe: in this pod, or over several nodes as a TrainJob of Kubeflow Trainer."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output, TaskConfigField, TaskConfigPassthrough

from components import IMAGE


@dsl.component(
    base_image=IMAGE,
    install_kfp_package=False,
    # What this task is given, a TrainJob's pods are given too.
    task_config_passthroughs=[
        TaskConfigPassthrough(field=field, apply_to_task=True)
        for field in (
            TaskConfigField.RESOURCES,
            TaskConfigField.ENV,
            TaskConfigField.KUBERNETES_NODE_SELECTOR,
            TaskConfigField.KUBERNETES_TOLERATIONS,
            TaskConfigField.KUBERNETES_VOLUMES,
        )
    ],
)
def train(
    params: str,
    code: str,
    image: str,
    workspace: str,
    mlflow_uri: str,
    experiment: str,
    md5: str,
    gpus: int,
    nodes: int,
    dataset: Input[Dataset],
    init: Input[Model],
    out: Output[Model],
    pod: dsl.TaskConfig,
):
    """Train the network; a retried task goes on from the last checkpoint.

    On one node it trains in this pod, under torchrun with more than one GPU. On several it starts a TrainJob and waits.

    Args:
        params: text of the params file.
        code: commit of the code.
        image: container image that the tasks run.
        workspace: folder that the tasks of a run share, and the pods of a TrainJob.
        mlflow_uri: the tracking server, which gets the curves while it trains; empty for that of the environment.
        experiment: where the run is recorded; empty for that of the params file.
        md5: of the data folder, as data.dvc gives it.
        gpus: processes a node; 0 and 1 are one.
        nodes: 1 trains here; more are the pods of a TrainJob.
        dataset: pointer to the data.
        init: folder of the pretrain step.
        out: folder of the train step.
        pod: what this task's pod was given: resources, environment, volumes, node selector, tolerations.
    """
    import dataclasses
    from pathlib import Path

    from pdnet.container import headline, task
    from pdnet.steps import train
    from pdnet.trainjob import train_on_nodes

    with task(
        "train",
        params=params,
        workspace=workspace,
        code=code,
        image=image,
        mlflow_uri=mlflow_uri,
        experiment=experiment,
    ) as run:
        videos, images = run.footage(Path(dataset.path), md5)
        paths = {"videos": videos, "images": images, "init": Path(init.path), "out": Path(out.path)}
        if nodes > 1:
            train_on_nodes(run, image=image, nodes=nodes, processes=gpus, pod=dataclasses.asdict(pod), **paths)
        else:
            run.launch(train, processes=gpus, **paths, checkpoints=run.checkpoints)
        out.metadata.update(headline(Path(out.path)))
