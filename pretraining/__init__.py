"""Entry points, tasks and the training loop."""
