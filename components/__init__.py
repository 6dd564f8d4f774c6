"""The Kubeflow components, one folder a step: each a typed adapter over its function in `pdnet.steps`."""

#: The image of a component that is run on its own; the pipeline names its own for every task.
IMAGE = "pdnet:cpu"
