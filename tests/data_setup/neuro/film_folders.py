"""A small film and its brains, as files."""

from pathlib import Path

import nibabel as nib
import numpy as np

from data_setup.neuro.film_data import Film
from data_setup.neuro.film_settings import FilmDataSettings

TRS, GRID = 60, (5, 6, 4)


def write_film(path: Path, seconds: int, seed: int = 0) -> None:
    """Ten pictures a second whose grey and red wander."""
    import av

    rng = np.random.default_rng(seed)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 32, 16, "yuv420p", 2_000_000
        for grey, red in rng.integers(60, 200, (seconds * 10, 2)):
            picture = np.full((16, 32, 3), grey, np.uint8)
            picture[:, 16:, 0] = red
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def brain(number: int, trs: int = TRS) -> np.ndarray:
    """float32 [5, 6, 4, trs]: still outside x = 1..3, nearly still at (1, 0, 0)."""
    rng = np.random.default_rng(number)
    run = np.full((*GRID, trs), 500, np.float32)
    run[1:4] += rng.normal(0, 10, (3, *GRID[1:], trs))
    run[1, 0, 0] = 500 + rng.normal(0, 0.1, trs)
    return run


def write_brain(folder: Path, name: str, run: np.ndarray, tr: float = 1.0, affine=None) -> None:
    image = nib.Nifti1Image(run, np.diag([3.0, 3, 3, 1]) if affine is None else affine)
    image.header.set_zooms((3, 3, 3, tr))
    image.header.set_xyzt_units("mm", "sec")
    (folder / "sherlock_nii").mkdir(exist_ok=True)
    nib.save(image, folder / "sherlock_nii" / name)


def write_folder(root: Path) -> Path:
    """60 TRs of a second, three brains, 3 books of 4 codes, a text of 6."""
    root.mkdir()
    write_film(root / "stimuli_Sherlock.m4v", TRS)
    rng = np.random.default_rng(5)
    np.savez(root / "audio_codes.npz", codes=rng.integers(0, 32, (TRS, 3, 4)))
    np.savez(root / "text_embeddings.npz", embeddings=rng.normal(size=(TRS, 6)).astype(np.float32))
    for number in (1, 2, 10):
        write_brain(root, f"sherlock_movie_s{number}.nii.gz", brain(number))
    return root


def settings(folder: Path, **others) -> FilmDataSettings:
    given = {"tr": 1.0, "fps": 10, "frame_skip": 5, "video_height": 4, "video_width": 8, "num_codes": 32}
    given |= {"train_split": 0.6, "gap_trs": 6}
    return FilmDataSettings(source="folder", path=str(folder), **{**given, **others})


def only(folder: Path) -> Path:
    """The one folder of the cache."""
    (found,) = (folder / "cache").iterdir()
    return found


def same(first: Film, second: Film) -> None:
    for name in ("video", "video_target", "audio", "text", "fmri", "subject_series", "train", "val"):
        one, two = getattr(first, name), getattr(second, name)
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    assert first.facts() == second.facts()
    assert first.fingerprint() == second.fingerprint()
    assert first.statistics.variance == second.statistics.variance
