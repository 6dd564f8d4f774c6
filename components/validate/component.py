"""The rules that training relies on."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def validate(
    params: str,
    code: str,
    image: str,
    workspace: str,
    md5: str,
    dataset: Input[Dataset],
    out: Output[Artifact],
    findings: Output[HTML],
):
    """Check every clip, frame and still.

    Args:
        params: text of the params file.
        code: commit of the code.
        image: container image that the tasks run.
        workspace: folder that the tasks of a run share.
        md5: of the data folder, as data.dvc gives it.
        dataset: pointer to the data.
        out: folder of the validate step.
        findings: its page.
    """
    import shutil
    from pathlib import Path

    from pdnet.container import headline, task
    from pdnet.steps import validate

    with task("validate", params=params, workspace=workspace, code=code, image=image) as run:
        videos, images = run.footage(Path(dataset.path), md5)
        folder = Path(out.path)
        try:
            validate(videos=videos, images=images, out=folder, config=run.config)
        finally:
            if (folder / "index.html").is_file():
                shutil.copyfile(folder / "index.html", findings.path)
        out.metadata.update(headline(folder))
