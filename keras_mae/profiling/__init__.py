"""What a training step costs, how long it takes, and whether a TPU would run it."""
