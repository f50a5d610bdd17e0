"""Tracking: host numbers of a run go to a file (always), a terminal or log, and Weights & Biases."""
