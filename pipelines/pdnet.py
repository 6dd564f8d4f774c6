"""The pipeline on Kubeflow: data, validate, pretrain, train, evaluate, ONNX, TensorRT if asked for, report, register.

One definition for a process on a laptop, containers on a laptop and pods on a cluster: `kfp run pipelines/pdnet.py`.
Wiring and resources, nothing else; what a task does is in `components/` and `pdnet.steps`.
"""

import sys
from pathlib import Path
from typing import NamedTuple

from kfp import dsl, kubernetes

sys.path.insert(0, str(Path(__file__).parents[1]))  # the folder that has `components`

from components.data.component import data
from components.evaluate.component import evaluate
from components.export_onnx.component import export_onnx
from components.export_tensorrt.component import export_tensorrt
from components.outcome.component import outcome
from components.pretrain.component import pretrain
from components.register.component import register
from components.report.component import report
from components.train.component import train
from components.validate.component import validate

WORKSPACE = dsl.WORKSPACE_PATH_PLACEHOLDER
#: Environment from Kubernetes Secrets: variable and key are named alike.
S3 = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION")
MLFLOW = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
#: The resource that NVIDIA's device plugin gives out, and the taint of nodes that have it.
GPU = "nvidia.com/gpu"


class Needs(NamedTuple):
    """What a task asks of its node."""

    cpu: str
    memory: str
    hours: int
    retries: int = 2


NEEDS = {
    "data": Needs(cpu="2", memory="4Gi", hours=4),
    "validate": Needs(cpu="4", memory="8Gi", hours=2),
    "pretrain": Needs(cpu="8", memory="32Gi", hours=24, retries=5),
    "train": Needs(cpu="8", memory="32Gi", hours=96, retries=5),
    "evaluate": Needs(cpu="4", memory="16Gi", hours=4),
    "export_onnx": Needs(cpu="4", memory="16Gi", hours=4),
    "export_tensorrt": Needs(cpu="4", memory="16Gi", hours=4),
    "report": Needs(cpu="2", memory="8Gi", hours=1),
    "register": Needs(cpu="2", memory="8Gi", hours=1),
    "outcome": Needs(cpu="1", memory="2Gi", hours=1),
}


@dsl.pipeline(
    name="pdnet",
    description="Train PDNet on a version of the data set, evaluate, export and register it.",
    pipeline_config=dsl.PipelineConfig(
        workspace=dsl.WorkspaceConfig(
            size="200Gi",
            kubernetes=dsl.KubernetesWorkspaceConfig(
                pvcSpecPatch={"storageClassName": "pdnet-workspace", "accessModes": ["ReadWriteMany"]}
            ),
        ),
        active_deadline_seconds=7 * 24 * 3600,
    ),
)
def pdnet(
    params: str,
    data_md5: str,
    image: str,
    code: str,
    data_revision: str = "",
    data_remote: str = "",
    mlflow_uri: str = "",
    experiment: str = "",
    promotion_policy: str = "",
    export_bounds: str = "",
    tensorrt: bool = False,
    tensorrt_image: str = "",
    gpus: int = 1,
    gpu_type: dict = {},
    nodes: int = 1,
    tolerations: list = [],
):
    """Train PDNet on a version of the data set, evaluate, export and register it.

    Args:
        params: text of the params file.
        data_md5: the data's version, as data.dvc gives it.
        image: container image of every task, by digest.
        code: commit of the code in the image.
        data_revision: git revision whose data.dvc names that version, for the record.
        data_remote: URL of the DVC remote.
        mlflow_uri: MLflow tracking server.
        experiment: where runs are recorded; empty for that of the params file.
        promotion_policy: text of the promotion policy; empty for no promotion.
        export_bounds: text of the bounds of exported files; empty for the built-in ones.
        tensorrt: build engines too; needs a GPU.
        tensorrt_image: image with TensorRT, by digest, for that one task.
        gpus: per pod of the GPU tasks; 0 trains on the CPU.
        gpu_type: labels of the nodes that have the wanted GPU, as `{"nvidia.com/gpu.product": "NVIDIA-L4"}`.
        nodes: pods of the training; more than one make a TrainJob.
        tolerations: of GPU tasks beyond that of the GPU taint, as in a pod's specification.
    """
    common = {"params": params, "code": code, "image": image, "workspace": WORKSPACE}
    record = {"mlflow_uri": mlflow_uri, "experiment": experiment}

    def placed(task: dsl.PipelineTask, step: str) -> dsl.PipelineTask:
        """Image, resources, retries, deadline, secrets."""
        needs = NEEDS[step]
        task.set_container_image(image)
        task.set_cpu_request(needs.cpu).set_cpu_limit(needs.cpu)
        task.set_memory_request(needs.memory).set_memory_limit(needs.memory)
        # Argo counts the longest backoff from the first attempt's start, running time and all: no retry after it.
        longest = f"{3600 * needs.hours * (needs.retries + 1)}s"
        task.set_retry(needs.retries, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration=longest)
        kubernetes.set_security_context(task, run_as_non_root=True)
        kubernetes.set_timeout(task, 3600 * needs.hours)
        kubernetes.use_secret_as_env(task, "pdnet-s3", dict(zip(S3, S3, strict=True)), optional=True)
        kubernetes.use_secret_as_env(task, "pdnet-mlflow", dict(zip(MLFLOW, MLFLOW, strict=True)), optional=True)
        kubernetes.mount_pvc(task, pvc_name="pdnet-dvc-cache", mount_path="/dvc-cache")
        return task

    def on_gpu(task: dsl.PipelineTask, step: str) -> dsl.PipelineTask:
        """The same on a GPU node, with /dev/shm large enough for loader processes."""
        placed(task, step)
        task.set_accelerator_type(GPU).set_accelerator_limit(gpus)
        kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit="8Gi")
        kubernetes.add_node_selector_json(task, gpu_type)
        kubernetes.add_toleration(task, key=GPU, operator="Exists", effect="NoSchedule")
        kubernetes.add_toleration_json(task, tolerations)
        return task

    last = placed(outcome(**common, **record, run=dsl.PIPELINE_JOB_ID_PLACEHOLDER), "outcome")
    last.set_caching_options(False)

    with dsl.ExitHandler(last, name="run"):
        dataset = placed(data(**common, md5=data_md5, remote=data_remote, revision=data_revision), "data")
        about = common | {"md5": data_md5, "dataset": dataset.outputs["dataset"]}
        checked = placed(validate(**about), "validate")
        training = about | record | {"gpus": gpus}
        pretrained = on_gpu(pretrain(**training, validation=checked.outputs["out"]), "pretrain")
        trained = on_gpu(train(**training, nodes=nodes, init=pretrained.outputs["out"]), "train")
        scored = on_gpu(evaluate(**about, model=trained.outputs["out"]), "evaluate")
        judged = {"evaluation": scored.outputs["out"], "bounds": export_bounds}
        exported = placed(export_onnx(**about, **judged, model=trained.outputs["out"]), "export_onnx")
        made = {
            "validation": checked.outputs["out"],
            "pretrain": pretrained.outputs["out"],
            "train": trained.outputs["out"],
            "evaluation": scored.outputs["out"],
            "export": exported.outputs["out"],
        }
        told = placed(report(**about, **made), "report")
        to_register = about | record | made | {"policy": promotion_policy, "report": told.outputs["out"]}

        def registered(**engine) -> None:
            """Registration looks itself whether there is anything new: it is never taken from the cache."""
            placed(register(**to_register, **engine), "register").set_caching_options(False)

        with dsl.If(tensorrt == False, name="without-tensorrt"):  # noqa: E712 - a condition of the pipeline
            registered()
        with dsl.Elif(gpus == 0, name="no-gpu"):
            registered()
        with dsl.Else(name="with-tensorrt"):
            engine = export_tensorrt(**about | judged | {"image": tensorrt_image}, export=exported.outputs["out"])
            on_gpu(engine, "export_tensorrt").set_container_image(tensorrt_image)
            registered(tensorrt=engine.outputs["out"])
