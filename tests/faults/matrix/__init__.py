"""The fault matrix: every fault that a run's checkpoints must survive, as a row that makes it happen and looks."""
