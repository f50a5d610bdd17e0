"""Stands before the real package for runs that do without: MONAI imports it, and with it accelerate and torch_xla."""

raise ImportError(
    "tests/integration hides transformers; a run that needs it is started by train(.., transformers=True)"
)
