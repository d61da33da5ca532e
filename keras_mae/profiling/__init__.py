"""Cost of a training step: FLOPs, memory, benchmarks, and compiling for a TPU."""
