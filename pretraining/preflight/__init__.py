"""`octfm preflight`: the training step of a configuration, traced as it would run on a slice, compiled, judged."""
