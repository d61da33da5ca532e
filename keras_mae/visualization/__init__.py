"""Visualize reconstructions; plots of classifiers and benchmarks."""

from keras_mae.visualization.reconstructions import draw_reconstructions

__all__ = ["draw_reconstructions"]
