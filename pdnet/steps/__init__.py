"""One function a pipeline step: what the command line, DVC and Kubeflow all call.

Each takes keyword-only paths in and out plus the configuration, and writes its folder whole. Their order:

    data -> validate -> pretrain -> train -> evaluate -> export_onnx (-> export_tensorrt) -> report -> register

`synthesise` makes data where there are none; `outcome` records a pipeline run that failed. What people ask of the
registry stands beside them, a module each: promote, rollback, show_lineage, verify, export_triton, track_sync.
`bench` times a network.
"""

from pdnet.steps.data import data
from pdnet.steps.evaluate import evaluate
from pdnet.steps.export_onnx import export_onnx
from pdnet.steps.export_tensorrt import export_tensorrt
from pdnet.steps.outcome import outcome
from pdnet.steps.pretrain import pretrain
from pdnet.steps.register import register
from pdnet.steps.report import report
from pdnet.steps.synthesise import synthesise
from pdnet.steps.train import train
from pdnet.steps.validate import validate

#: in the order of the pipeline
STEPS = (data, validate, pretrain, train, evaluate, export_onnx, export_tensorrt, report, register)

__all__ = [
    "STEPS",
    "data",
    "evaluate",
    "export_onnx",
    "export_tensorrt",
    "outcome",
    "pretrain",
    "register",
    "report",
    "synthesise",
    "train",
    "validate",
]
