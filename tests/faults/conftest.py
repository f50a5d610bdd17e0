"""The fixture `gcs` for this folder; other folders import it the same way."""

from tests.faults.gcs_emulator import gcs

__all__ = ["gcs"]
