"""Files -> verified volumes -> prepared samples -> batches. Knows nothing of models or the training loop."""
