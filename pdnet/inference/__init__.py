"""A clip through a trained network, frame by frame."""
