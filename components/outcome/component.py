"""The exit handler: a run that failed is on record too."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def outcome(
    params: str,
    code: str,
    image: str,
    workspace: str,
    mlflow_uri: str,
    experiment: str,
    run: str,
    status: dsl.PipelineTaskFinalStatus,
):
    """Record a failed pipeline run in MLflow, with the failing step's own words.

    Args:
        params: text of the params file.
        code: commit of the code.
        image: container image that the tasks run.
        workspace: folder that the tasks of a run share.
        mlflow_uri: the tracking server; empty for that of the environment.
        experiment: where the failure is recorded; empty for that of the params file.
        run: the pipeline run's own id.
        status: how the pipeline ended.
    """
    from pathlib import Path

    from pdnet.container import failures, task
    from pdnet.steps import outcome

    with task(
        "outcome",
        params=params,
        workspace=workspace,
        code=code,
        image=image,
        mlflow_uri=mlflow_uri,
        experiment=experiment,
        tolerant=True,
    ) as here:
        told = [f"{step}: {line}" for step, line in failures(Path(workspace)).items()]
        message = "\n".join(told) or status.error_message or ""
        outcome(state=status.state, run=run, message=message, config=here.config)
