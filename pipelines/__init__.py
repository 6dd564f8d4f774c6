"""The pipeline on Kubeflow, and what runs it."""
