"""Settings, data, the training loop, checkpoints and metrics for weighted multi-token prediction."""
