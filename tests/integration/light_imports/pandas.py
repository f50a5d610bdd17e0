"""Stands before the real package, which MONAI imports where it is installed; no run uses it."""

raise ImportError("tests/integration hides pandas; a run that needs it is started by train(.., transformers=True)")
