"""Foundation-model building blocks for retinal OCT: models, losses, optimisation, runtimes, checkpoints, tracking."""
