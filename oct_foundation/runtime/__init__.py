"""Where a run executes: XLA (TPU pods, or XLA on a CPU), CUDA and plain CPU behind one `Runtime` protocol."""
