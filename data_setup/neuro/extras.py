"""Packages that films and raw fMRI need and nothing else does: one readable error where they are absent."""

import importlib
from types import ModuleType


def extra(name: str) -> ModuleType:
    """The module `name` of av or nilearn; raises ValueError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name != package:  # it is there, and something that it needs is not
            raise
        raise ValueError(
            f"data.source=folder needs the package {package}, which is not installed: pip install 'octfm[neuro]'"
        ) from None
