"""Foreign checkpoints in and out, without a model in between: every tensor keeps its bits and its type."""
