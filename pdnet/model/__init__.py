"""The network: encoder (4.1), IPDA (4.2), spatiotemporal fusion (4.3). Start with `pdnet.py`."""

from pdnet.model.layers import resize
from pdnet.model.pdnet import FrameMaps, ModelConfig, PDNet, PDNetOutput, ReferenceFeatures

__all__ = ["FrameMaps", "ModelConfig", "PDNet", "PDNetOutput", "ReferenceFeatures", "resize"]
