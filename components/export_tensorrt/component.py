"""The TensorRT engines; need a GPU and the image that has TensorRT."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def export_tensorrt(
    params: str,
    code: str,
    image: str,
    workspace: str,
    md5: str,
    dataset: Input[Dataset],
    export: Input[Model],
    evaluation: Input[Artifact],
    bounds: str,
    out: Output[Model],
):
    """Build engines from the ONNX files and measure J&F again through them.

    Args:
        params: text of the params file.
        code: commit of the code.
        image: container image that this task runs.
        workspace: folder that the tasks of a run share.
        md5: of the data folder, as data.dvc gives it.
        dataset: pointer to the data.
        export: folder of the export_onnx step.
        evaluation: folder of the evaluate step.
        bounds: text of the bounds of parity; empty for the built-in ones.
        out: folder of the export_tensorrt step.
    """
    from pathlib import Path

    from pdnet.container import headline, task
    from pdnet.steps import export_tensorrt

    with task("export_tensorrt", params=params, workspace=workspace, code=code, image=image) as run:
        videos, _ = run.footage(Path(dataset.path), md5)
        export_tensorrt(
            videos=videos,
            export=Path(export.path),
            evaluation=Path(evaluation.path),
            out=Path(out.path),
            bounds=run.file("export.yaml", bounds),
            timing_cache=None,  # the workspace ends with its run
            config=run.config,
        )
        out.metadata.update(headline(Path(out.path)))
