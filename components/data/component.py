"""The data set, by pointer: what is handed on is its name, the bytes go into the workspace."""

from kfp import dsl
from kfp.dsl import Dataset, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def data(
    params: str, code: str, image: str, workspace: str, md5: str, remote: str, revision: str, dataset: Output[Dataset]
):
    """Bring a version of the data set from the DVC remote into the workspace.

    Args:
        params: text of the params file.
        code: commit of the code.
        image: container image that the tasks run.
        workspace: folder that the tasks of a run share.
        md5: of the data folder, as data.dvc gives it.
        remote: URL of the DVC remote.
        revision: git revision that tracks this version.
        dataset: pointer to the version: md5, revision, remote.
    """
    from pathlib import Path

    from pdnet.container import task, write_pointer
    from pdnet.steps import data

    with task("data", params=params, workspace=workspace, code=code, image=image) as run:
        data(md5=md5, out=run.place_of(md5), remote=remote, revision=revision)
        write_pointer(Path(dataset.path), md5=md5, revision=revision, remote=remote)
        dataset.metadata.update({"md5": md5, "revision": revision, "remote": remote})
