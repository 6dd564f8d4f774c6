"""The ONNX files, accepted only when they are the same model."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def export_onnx(
    params: str,
    code: str,
    image: str,
    workspace: str,
    md5: str,
    dataset: Input[Dataset],
    model: Input[Model],
    evaluation: Input[Artifact],
    bounds: str,
    out: Output[Model],
):
    """Write the network as ONNX and measure J&F again through the files.

    Args:
        params: text of the params file.
        code: commit of the code.
        image: container image that the tasks run.
        workspace: folder that the tasks of a run share.
        md5: of the data folder, as data.dvc gives it.
        dataset: pointer to the data.
        model: folder of the train step.
        evaluation: folder of the evaluate step.
        bounds: text of the bounds of parity; empty for the built-in ones.
        out: folder of the export_onnx step.
    """
    from pathlib import Path

    from pdnet.container import headline, task
    from pdnet.steps import export_onnx

    with task("export_onnx", params=params, workspace=workspace, code=code, image=image) as run:
        videos, _ = run.footage(Path(dataset.path), md5)
        export_onnx(
            videos=videos,
            model=Path(model.path),
            evaluation=Path(evaluation.path),
            out=Path(out.path),
            bounds=run.file("export.yaml", bounds),
            config=run.config,
        )
        out.metadata.update(headline(Path(out.path)))
