"""DICOM file in, verified volume [D, H, W] out, or a BadFile that says why not. The only room that knows pydicom."""

from data_setup.dicom.read import read_volume
from data_setup.errors import BadFile, Reason
from data_setup.volume import Volume

__all__ = ["BadFile", "Reason", "Volume", "read_volume"]
