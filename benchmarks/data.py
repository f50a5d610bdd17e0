"""The data path against its bare kernels and against MONAI: `python -m benchmarks.data [--quick] [--part a|b|c|d]`.

a: `prepare` with one worker against nothing but pydicom's decode and our resize in one process, per transfer syntax,
on the same files: full-size scans whose B-scans are those of the real Spectralis volume (OCTFM_TEST_DATA).
b: training samples from a prepared set against MONAI's LoadImaged(PydicomReader) from the same DICOM files and
against MONAI's PersistentDataset; contestants take turns, one process, one thread.
c: samples/s of one core and memory of a worker at [64,384,384]. d: peak memory of `prepare` on 512x992x512.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import pixel_array
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from benchmarks.report import median, parse_arguments, peak_memory_mib, print_report
from data_setup.datasets import PreparedVolumes, VolumeDataset
from data_setup.dicom.pixels import decoding_plugin
from data_setup.masking import MaskGenerator, MaskSettings
from data_setup.prepare import PrepareSettings, prepare
from data_setup.resample import resize
from data_setup.sampler import SampleKey
from data_setup.sources import DirectorySource
from data_setup.transforms import TrainingTransform
from data_setup.views import ViewSettings
from oct_foundation.geometry import PatchGrid

SIZE = (64, 384, 384)
SETTINGS = PrepareSettings(image_size=SIZE, include_nonvolumetric=True, val_fraction=0.01)
TEST_DATA = Path(os.environ.get("OCTFM_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
RASTER = "oct/spectralis_macula_drusen_97x496x512_jpegls.dcm"
LOSSLESS_JPEG = "oct/spectralis_onh_5x496x768_jpeglossless_sv1.dcm"  # no encoder at hand: its frames are repeated
# Syntax -> frames, rows, columns of a maker's scan, and how many files are prepared.
SCANS: dict[str, tuple[UID, tuple[int, int, int], int]] = {
    "native": (ExplicitVRLittleEndian, (128, 885, 512), 32),
    "rle": (RLELossless, (128, 885, 512), 32),
    "jpegls": (JPEGLSLossless, (97, 496, 512), 32),
    "jpeglossless": (JPEGLosslessSV1, (60, 496, 768), 32),
    "jpeg2000": (JPEG2000Lossless, (97, 496, 512), 8),
}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(__doc__ or "", argv, parts="abcd")
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for part, measure in (("a", throughput), ("b", against_monai), ("c", one_core), ("d", peak_memory)):
            if part in arguments.part:
                measure(folder / part, 1 if arguments.quick else 3, figures, ratios)
    print_report("data", figures, ratios)


def throughput(folder: Path, rounds: int, figures: dict[str, Any], ratios: dict[str, float]) -> None:
    """Part a. Contestants alternate; a round takes each once."""
    for name, (syntax, shape, count) in SCANS.items():
        source = folder / name
        first = write_scan(source / "0.dcm", syntax, shape)
        for number in range(1, count):
            os.link(first, source / f"{number}.dcm")
        decoded = float(np.prod(shape)) * count / 1e6
        times: dict[str, list[float]] = {"prepare": [], "kernels": []} | ({"decode": []} if name == "jpeg2000" else {})
        for turn in range(rounds):
            times["prepare"].append(timed(lambda s=source, t=turn: run_prepare(s, folder / f"{s.name}-{t}")))
            times["kernels"].append(timed(lambda s=source: run_kernels(s, with_resize=True)))
            if "decode" in times:
                times["decode"].append(timed(lambda s=source: run_kernels(s, with_resize=False)))
        speeds = {who: decoded / median(taken) for who, taken in times.items()}
        figures[f"a {name}"] = {f"{who} MB/s": round(speed, 1) for who, speed in speeds.items()} | {"files": count}
        ratios[f"a {name}: prepare / kernels"] = median(
            [bare / ours for bare, ours in zip(times["kernels"], times["prepare"], strict=True)]
        )
        if "decode" in times:
            ratios["a jpeg2000: prepare / decode alone"] = median(
                [bare / ours for bare, ours in zip(times["decode"], times["prepare"], strict=True)]
            )


def run_prepare(source: Path, out: Path) -> None:
    prepared = prepare(DirectorySource(source), out, SETTINGS, num_workers=1)
    assert len(prepared.accepted()) == len(list(source.iterdir())), prepared.bad_file_table()
    shutil.rmtree(out)


def run_kernels(source: Path, *, with_resize: bool) -> None:
    """The bare work, file after file, by the same decoders; nothing is checked and nothing written."""
    for path in sorted(source.iterdir()):
        syntax = dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID
        voxels = pixel_array(path, decoding_plugin=decoding_plugin(syntax))
        if with_resize:
            resize(voxels, SIZE)


def write_scan(path: Path, syntax: UID, shape: tuple[int, int, int]) -> Path:
    """An OPT file of the real raster's B-scans, resampled to `shape` and compressed, evenly spaced."""
    path.parent.mkdir(parents=True)
    template = dcmread(TEST_DATA / RASTER)
    frames, rows, columns = shape
    if syntax == JPEGLosslessSV1:
        lossless = dcmread(TEST_DATA / LOSSLESS_JPEG)
        coded = list(generate_frames(lossless.PixelData, number_of_frames=lossless.NumberOfFrames))
        fragments = [coded[number % len(coded)] for number in range(frames)]
    else:
        real = pixel_array(TEST_DATA / RASTER)
        fragments = [bscan_of(real[number % len(real)], rows, columns) for number in range(frames)]
    scan = header(template, syntax, shape)
    if syntax == ExplicitVRLittleEndian:
        scan.PixelData = b"".join(fragments)
    elif syntax == JPEGLosslessSV1:
        scan.PixelData = encapsulate(fragments)
    else:
        scan.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        scan.PixelData = b"".join(fragments)
        scan.compress(syntax, generate_instance_uid=False)
    scan.save_as(path, enforce_file_format=True)
    return path


def bscan_of(bscan: np.ndarray, rows: int, columns: int) -> bytes:
    return Image.fromarray(bscan).resize((columns, rows), Image.Resampling.BICUBIC).tobytes()


def header(template: Dataset, syntax: UID, shape: tuple[int, int, int]) -> Dataset:
    """The template's header for another shape: its planes keep their distance."""
    scan = Dataset()
    scan.update({element.tag: element for element in template if element.tag.group != 0x7FE0})
    scan.file_meta = template.file_meta
    scan.file_meta.TransferSyntaxUID = syntax
    scan.NumberOfFrames, scan.Rows, scan.Columns = shape
    group = template.PerFrameFunctionalGroupsSequence[0]
    groups = []
    for number in range(shape[0]):
        copy = Dataset.from_json(group.to_json())
        copy.PlanePositionSequence[0].ImagePositionPatient = [0, 0, round(0.03 * number, 6)]
        groups.append(copy)
    scan.PerFrameFunctionalGroupsSequence = groups
    return scan


def against_monai(folder: Path, rounds: int, figures: dict[str, Any], ratios: dict[str, float]) -> None:
    """Part b. A sample is two augmented views and a mask; MONAI gets its own transforms with our probabilities."""
    from monai.data import PersistentDataset, set_track_meta

    set_track_meta(False)  # with it, PersistentDataset cannot read back what it has cached, and computes it anew
    warnings.simplefilter("error", UserWarning)  # ... with a warning
    warnings.filterwarnings("ignore", message=".*(nvImageCodec|NvImgCodec|ImageOrientationPatient).*")
    source = folder / "dicom"
    for number in range(4):
        target = write_scan(source / str(number) / "0.dcm", JPEGLSLossless, (97, 496, 512))
        target.rename(source / f"{number}.dcm")
        target.parent.rmdir()
    prepared = prepare(DirectorySource(source), folder / "prepared", SETTINGS, num_workers=2)
    ours = VolumeDataset(PreparedVolumes(prepared, "train"), training_transform())
    files = [{"image": str(path)} for path in sorted(source.glob("*.dcm"))]
    fixed, random = monai_fixed(), monai_random()
    cached = PersistentDataset(files, [*fixed, *random], cache_dir=folder / "monai")
    for number in range(len(files)):
        cached[number]  # fills the cache
    contestants: dict[str, tuple[Callable[[int], Any], int]] = {
        "prepared": (lambda number: ours[SampleKey(number, number % len(ours))], 24),
        "persistent": (lambda number: cached[number % len(files)], 8),
        "dicom": (lambda number: chained([*fixed, *random], files[number % len(files)]), 2),
    }
    seconds: dict[str, list[float]] = {who: [] for who in contestants}
    for turn in range(rounds):
        for who, (sample, count) in contestants.items():
            taken = timed(lambda s=sample, n=count, t=turn: [s(t * n + number) for number in range(n)])
            seconds[who].append(taken / count)
    figures["b samples/s"] = {who: round(1 / median(taken), 3) for who, taken in seconds.items()}
    for peer in ("dicom", "persistent"):
        ratios[f"b prepared / MONAI {peer}"] = median(
            [theirs / mine for theirs, mine in zip(seconds[peer], seconds["prepared"], strict=True)]
        )


def training_transform() -> TrainingTransform:
    masks = MaskGenerator(PatchGrid(image_size=SIZE, patch_size=(4, 16, 16)), MaskSettings())
    return TrainingTransform(ViewSettings(), masks, seed=0)


def monai_fixed() -> list[Any]:
    """What a user of MONAI caches: read, axes to [1, D, H, W], antialiased resize, grey levels 0 to 1."""
    from monai.transforms import EnsureChannelFirstd, LoadImaged, Resized, ScaleIntensityd, ToTensord, Transposed

    return [
        LoadImaged("image", reader="PydicomReader", image_only=True),
        EnsureChannelFirstd("image", channel_dim="no_channel"),
        Transposed("image", (0, 2, 1, 3)),  # [1, H, D, W] as PydicomReader gives OPT
        Resized("image", SIZE, mode="trilinear", anti_aliasing=True),
        ScaleIntensityd("image"),
        ToTensord("image", track_meta=False),
    ]


def monai_random() -> list[Any]:
    """The augmentations of ViewSettings as MONAI's own 3-D transforms, and our mask."""
    from monai.transforms import (
        CopyItemsd,
        RandAdjustContrastd,
        RandAffined,
        RandFlipd,
        RandGaussianNoised,
        RandGaussianSmoothd,
        RandScaleIntensityd,
        RandShiftIntensityd,
    )

    from data_setup.transforms import VIEWS, JEPAMaskGeneratord

    views = ViewSettings()
    shift = [(0, 0), *((-views.max_shift * side, views.max_shift * side) for side in SIZE[1:])]
    steps: list[Any] = [
        RandFlipd("image", prob=views.flip_prob, spatial_axis=0),
        RandFlipd("image", prob=views.flip_prob, spatial_axis=2),
        RandAffined(
            "image",
            prob=views.affine_prob,
            rotate_range=(views.max_tilt_rad, 0, 0),
            translate_range=shift,
            scale_range=[(0, 0), views.max_zoom, views.max_zoom],
            padding_mode="border",
        ),
        CopyItemsd("image", times=2, names=list(VIEWS)),
    ]
    blur = (0.0, views.max_blur)
    for view in VIEWS:
        steps += [
            RandScaleIntensityd(view, factors=views.max_gain, prob=views.intensity_prob),
            RandShiftIntensityd(view, offsets=views.max_brightness, prob=views.intensity_prob),
            RandAdjustContrastd(view, prob=views.intensity_prob, gamma=(1 / views.max_gamma, views.max_gamma)),
            RandGaussianSmoothd(view, prob=views.blur_prob, sigma_x=(0.0, 0.0), sigma_y=blur, sigma_z=blur),
            RandGaussianNoised(view, prob=views.noise_prob, std=views.max_noise),
        ]
    masks = MaskGenerator(PatchGrid(image_size=SIZE, patch_size=(4, 16, 16)), MaskSettings())
    return [*steps, JEPAMaskGeneratord(masks)]


def chained(steps: list[Any], sample: Any) -> Any:
    for step in steps:
        sample = step(sample)
    return sample


def one_core(folder: Path, rounds: int, figures: dict[str, Any], ratios: dict[str, float]) -> None:
    """Part c, in a process of its own, so that its memory is that of a loader worker."""
    figures["c one worker"] = last_json("-m", "benchmarks.data", "--worker", str(folder), str(40 * rounds))


def peak_memory(folder: Path, rounds: int, figures: dict[str, Any], ratios: dict[str, float]) -> None:
    """Part d: the largest scan that AI-READI lists, native and compressed."""
    for name, syntax in (("native", ExplicitVRLittleEndian), ("jpegls", JPEGLSLossless)):
        write_scan(folder / name / "0.dcm", syntax, (512, 992, 512))
        figures[f"d 512x992x512 {name}"] = last_json("-c", _PREPARE_ONCE, str(folder / name))


# Imports no torch: a child's maximum is never less than what its parent held when it forked.
_PREPARE_ONCE = """
import json, resource, sys
from data_setup.prepare import PrepareSettings, prepare
from data_setup.sources import DirectorySource
prepared = prepare(DirectorySource(sys.argv[1]), sys.argv[1] + "-out", PrepareSettings(image_size=(64, 384, 384)), 1)
assert len(prepared.accepted()) == 1
facts = dict(line.split(":", 1) for line in open("/proc/self/status"))
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({"decoder MiB": child // 1024, "parent MiB": int(facts["VmHWM"].split()[0]) // 1024}))
"""


def last_json(*arguments: str) -> Any:
    """The last line that another interpreter prints."""
    done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def worker(folder: Path, count: int) -> None:
    """Makes samples as a loader's worker does; prints one JSON object."""
    torch.set_num_threads(1)
    transform, rng = training_transform(), np.random.default_rng(0)
    folder.mkdir(parents=True)
    np.save(folder / "volume.npy", rng.integers(0, 256, SIZE, dtype=np.uint8))
    before = peak_memory_mib() or 0
    taken = []
    for number in range(count):
        volume = np.load(folder / "volume.npy", mmap_mode="r")
        taken.append(timed(lambda v=volume, n=number: transform(v, SampleKey(0, n))))
    rate = count / sum(taken)
    print(
        json.dumps(
            {
                "samples/s": round(rate, 2),
                "median ms": round(1000 * median(taken)),
                "cores for 85 samples/s": round(85 / rate, 1),
                "peak MiB": round(peak_memory_mib() or 0),
                "MiB above imports": round((peak_memory_mib() or 0) - before),
            }
        )
    )


def timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
