"""Training runs: flags, folder, checkpoints and resuming; probing of features."""
