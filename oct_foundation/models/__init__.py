"""Networks: plain nn.Modules of fixed shapes that run unchanged on XLA, CUDA and CPU."""
