"""One function a pipeline step: what the command line, DVC and Kubeflow all call.

Each takes keyword-only paths in and out plus the configuration, and writes its folder whole. Their order:

    data -> validate -> pretrain -> train -> evaluate -> export_onnx -> report -> register
"""

from pdnet.steps.data import data
from pdnet.steps.evaluate import evaluate
from pdnet.steps.export_onnx import export_onnx
from pdnet.steps.pretrain import pretrain
from pdnet.steps.register import register
from pdnet.steps.report import report
from pdnet.steps.train import train
from pdnet.steps.validate import validate

#: in the order of the pipeline
STEPS = (data, validate, pretrain, train, evaluate, export_onnx, report, register)

__all__ = ["STEPS", "data", "evaluate", "export_onnx", "pretrain", "register", "report", "train", "validate"]
