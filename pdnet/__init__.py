"""PDNet: video portrait segmentation by part decoupling, from data to a registered model."""

__version__ = "0.1.0"
