"""`octfm fleet`: one training job on all workers of a TPU pod, or on any hosts with ssh."""
