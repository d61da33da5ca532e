"""Pictures of reconstructions, and plots."""

from keras_mae.visualization.reconstructions import draw_reconstructions

__all__ = ["draw_reconstructions"]
