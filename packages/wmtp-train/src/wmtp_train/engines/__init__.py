"""What owns parameters, gradients, optimizer state and checkpoints."""
