"""Visualize reconstructions and masks; plots of classifiers and benchmarks."""

from keras_mae.visualization.reconstructions import draw_masks, draw_reconstructions

__all__ = ["draw_masks", "draw_reconstructions"]
