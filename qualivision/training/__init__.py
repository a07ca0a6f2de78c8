"""Training: losses, optimizer and schedule, the loop, and checkpoints. One path for every model."""
