"""What every decoded scan must show, whatever its format: check 12 of the order in errors.Reason."""

import numpy as np

from data_setup.errors import BadFile, Reason


def check_content(voxels: np.ndarray) -> None:
    """Looks at [D, H, W]; raises BadFile(constant_image) for one value in all, BadFile(mostly_blank) where more than
    half of the B-scans have one value each.
    """
    blank = [bool((bscan == bscan[0, 0]).all()) if bscan[0, 0] == bscan[-1, -1] else False for bscan in voxels]
    if all(blank) and (voxels[:, 0, 0] == voxels[0, 0, 0]).all():
        raise BadFile(Reason.CONSTANT_IMAGE, "every pixel has the same value")
    if 2 * sum(blank) > len(voxels):
        raise BadFile(Reason.MOSTLY_BLANK, f"{sum(blank)} of {len(voxels)} frames have one value each")
