"""Checkpoints: where they lie (location), how bytes get there (store, local), what a run keeps (manager)."""
