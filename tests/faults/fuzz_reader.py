"""Damages DICOM files in eleven ways and reads them: `python -m tests.faults.fuzz_reader --count 50000 --seed 0`.

The law: read_volume gives a sound volume or BadFile, within 20 s. An unknown exception, an unsound volume or a hang
is a defect: exit code 1. The death of a foreign decoder is allowed, for the child dies alone; it is counted apart.
Every finding is saved and named by its seed and number, which make the same mutant again.
"""

import argparse
import io
import json
import os
import platform
import random
import re
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from pydicom import Dataset, dcmread, dcmwrite, uid
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from data_setup.dicom import read_volume
from data_setup.dicom.elements import quiet_pydicom
from data_setup.errors import BadFile, Reason
from data_setup.isolate import IsolationLimits, run_isolated
from data_setup.phantom import PhantomSettings, write_phantoms
from data_setup.volume import Volume

Kind = Literal[
    "truncate", "few bits", "many bits", "overwrite", "zero", "insert", "delete", "length", "splice", "header", "syntax"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
ACCEPTED = "accepted"
REASONS = frozenset(Reason)
EDGE = Path(os.environ.get("OCTFM_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "edge"
_BATCH = 200
_BATCH_TIME = 6  # times that of the slowest file allowed; usual: 1 s. A batch that needs longer is judged singly
_HEADER_BYTES = 2500  # half of all places are chosen here: the pixels are 90 % of the bytes
_JUDGED = frozenset(
    (
        *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit"),
        *("PixelRepresentation", "PhotometricInterpretation", "PlanarConfiguration", "BurnedInAnnotation"),
        *("InConcatenationTotalNumber", "SOPClassUID", "PixelSpacing", "SliceThickness", "ImagePositionPatient"),
        *("ImageOrientationPatient", "ReferenceCoordinates", "ImageLaterality", "OphthalmicVolumetricPropertiesFlag"),
    )
)
_NUMBERS = (0, 1, 2, 3, 7, 8, 9, 12, 16, 17, 32, 64, 255, 256, 1000, 32767, 32768, 65535)
_TEXTS: tuple[bytes, ...] = (
    *(b"", b"0", b"-1", b"1A", b"1e400", b"nan", b"3\\4", b"\\\\\\", b"2147483648", b"9" * 70),
    *(b"YES", b"MONOCHROME1", b"RGB", b"RIGHT", b"\x00\x00", b"\xff\xfe"),
)
_LENGTHS = (0, 1, 2, 8, 0x7FFF, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
_LENGTH_FIELD = re.compile(
    rb"(?<=OB\0\0|OW\0\0|SQ\0\0|UN\0\0|UT\0\0)....|(?<=\xfe\xff\x00\xe0)....|(?<=US|IS|DS|CS|UI|LO|SH|PN|DA|FL|FD)..",
    re.DOTALL,
)


class Seed(NamedTuple):
    """A file that mutants are made of."""

    name: str
    content: bytes


class Mutant(NamedTuple):
    """A damaged file: how, of which seed, and whether the reader shall admit other classes and single images."""

    kind: str
    source: str
    content: bytes
    admit_all: bool


@dataclass(frozen=True)
class Batch:
    """Mutants first .. first + count - 1 of a run: all that a child needs to make them itself."""

    folder: Path
    edge: Path | None
    seed: int
    first: int
    count: int


@dataclass(frozen=True)
class Run:
    """What to do: `edge` is a folder of files that are broken already, findings go to `findings`."""

    count: int
    seed: int
    workers: int
    edge: Path | None
    findings: Path
    slowest_s: float = 20.0


class Verdict(NamedTuple):
    """What became of a mutant; outcome: "accepted", a reason code, or a defect with a space in it."""

    number: int
    kind: str
    source: str
    outcome: str
    seconds: float


@dataclass
class Tally:
    """The sum of a run. defects and deaths: what each saved file shows, by its name."""

    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    defects: dict[str, str] = field(default_factory=dict)
    deaths: dict[str, str] = field(default_factory=dict)
    slowest_s: float = 0.0
    seconds: float = 0.0


def write_seeds(folder: Path) -> None:
    """Small OPT scans, 4 to 10 frames of 8 or 12 bits, in every transfer syntax that something here can write (HTJ2K:
    nothing). Equal bytes on every machine with equal encoders.
    """
    settings = PhantomSettings(num_volumes=3, scale=0.3)  # JPEG 2000 wants at least 32 columns
    phantoms = [dcmread(path) for path in write_phantoms(folder / "phantoms", settings)]
    for number, phantom in enumerate(phantoms):
        phantom.save_as(folder / f"phantom-{number}.seed")
    for syntax in (uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian):
        copy = _plain(phantoms[1], syntax)
        list(copy.iterall())  # unread elements would keep their bytes in the old order
        dcmwrite(folder / f"{syntax.keyword}.seed", copy)
    deep = _plain(phantoms[2], uid.ExplicitVRLittleEndian)
    deep.PixelData = (deep.pixel_array.astype(np.uint16) << 4).tobytes()
    deep["PixelData"].VR = "OW"
    deep.BitsAllocated, deep.BitsStored, deep.HighBit, deep.PhotometricInterpretation = 16, 12, 11, "MONOCHROME1"
    deep.save_as(folder / "deep.seed")
    for syntax, source, options in (
        (uid.RLELossless, deep, {}),
        (uid.JPEGLSLossless, deep, {}),
        (uid.JPEGLSNearLossless, phantoms[1], {"jls_error": 2}),
        (uid.JPEG2000Lossless, phantoms[2], {}),
        (uid.JPEG2000, deep, {"j2k_cr": [8]}),
    ):
        packed = _plain(source, uid.ExplicitVRLittleEndian)
        packed.compress(syntax, generate_instance_uid=False, **options)
        packed.save_as(folder / f"{syntax.keyword}.seed")
    for syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGBaseline8Bit):
        packed = _plain(phantoms[1], syntax)
        packed.PixelData = _jpeg_fragments(folder / "phantom-1.seed", syntax)
        packed["PixelData"].VR, packed["PixelData"].is_undefined_length = "OB", True
        packed.save_as(folder / f"{syntax.keyword}.seed")


def _plain(dataset: Dataset, syntax: uid.UID) -> Dataset:
    """A copy with uncompressed pixels, which is written in that syntax."""
    copy = deepcopy(dataset)
    if copy.file_meta.TransferSyntaxUID.is_compressed:
        copy.decompress(generate_instance_uid=False)
    copy.file_meta.TransferSyntaxUID = syntax
    return copy


def _jpeg_fragments(source: Path, syntax: uid.UID) -> bytes:
    """The pixels of a file as JPEG, which pydicom cannot write. gdcm's own headers hold the time: they are left out."""
    import gdcm  # in the parent only

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(source))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change(), syntax.name
    written = source.with_suffix(".jpeg")
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(written))
    assert writer.Write()
    return dcmread(written).PixelData


@cache
def seeds(folder: Path, edge: Path | None) -> tuple[list[Seed], list[Seed]]:
    """Our own scans and the files that are broken already, each by name."""
    own = [Seed(path.name, path.read_bytes()) for path in sorted(folder.glob("*.seed"))]
    found = sorted(edge.rglob("*")) if edge else []
    return own, [Seed(path.name, path.read_bytes()) for path in found if path.is_file() and path.suffix != ".json"]


def mutant(batch: Batch, number: int) -> Mutant:
    """The mutant of a run's number; the same on every call."""
    rng = random.Random(f"{batch.seed} {number}")
    own, edge = seeds(batch.folder, batch.edge)
    source = rng.choice(edge if edge and rng.random() < 0.5 else own)
    kind = rng.choice(KINDS)
    with quiet_pydicom():
        content = _damaged(kind, source.content, rng, [*own, *edge])
    return Mutant(kind, source.name, content, admit_all=rng.random() < 0.5)


def _place(content: bytes, rng: random.Random) -> int:
    """A position from 0 to the end, half of the time in the header."""
    within = len(content) if rng.random() < 0.5 else min(len(content), _HEADER_BYTES)
    return rng.randint(0, within)


def _damaged(kind: Kind, content: bytes, rng: random.Random, others: list[Seed]) -> bytes:
    """The content after one damage of a kind."""
    at = _place(content, rng)
    length = 1 << rng.randrange(13)
    match kind:
        case "truncate":
            return content[:at]
        case "few bits":
            return _flipped(content, rng, rng.randint(1, 8))
        case "many bits":
            return _flipped(content, rng, int(len(content) * 10 ** rng.uniform(-4, -1.5)) + 8)
        case "overwrite":
            return content[:at] + rng.randbytes(len(content[at : at + length])) + content[at + length :]
        case "zero":
            return content[:at] + bytes(len(content[at : at + length])) + content[at + length :]
        case "insert":
            return content[:at] + rng.randbytes(length) + content[at:]
        case "delete":
            return content[:at] + content[at + length :]
        case "length":
            return _wrong_length(content, rng)
        case "splice":
            other = rng.choice(others).content
            return content[:at] + other[_place(other, rng) :]
        case "header":
            return _edited(content, rng)
        case "syntax":
            return _other_syntax(content, rng)


def _flipped(content: bytes, rng: random.Random, count: int) -> bytes:
    changed = bytearray(content)
    for _ in range(count if content else 0):
        at = min(_place(content, rng), len(content) - 1)
        changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _wrong_length(content: bytes, rng: random.Random) -> bytes:
    """Another number where the length of an element or item stands; of implicit files, in any four bytes."""
    header_only = rng.random() < 0.8  # else the items of compressed frames, and whatever looks like a length
    fields = [found.span() for found in _LENGTH_FIELD.finditer(content, 0, _HEADER_BYTES if header_only else 1 << 30)]
    at = _place(content, rng)
    start, end = rng.choice(fields) if fields and rng.random() < 0.9 else (at, at + 4)
    found = int.from_bytes(content[start:end], "little")
    number = rng.choice((*_LENGTHS, found + 1, found - 1, found + 2, found * 2, rng.getrandbits(32)))
    return content[:start] + (number % (1 << 8 * (end - start))).to_bytes(end - start, "little") + content[end:]


def _other_syntax(content: bytes, rng: random.Random) -> bytes:
    """The same bytes under the name of another transfer syntax."""
    name = rng.choice(uid.AllTransferSyntaxes).encode()
    name += b"\0" * (len(name) % 2)
    field = rb"\x02\x00\x10\x00UI..[0-9.]+\0?"
    return re.sub(
        field, lambda _: b"\x02\x00\x10\x00UI" + struct.pack("<H", len(name)) + name, content, count=1, flags=re.DOTALL
    )


def _edited(content: bytes, rng: random.Random) -> bytes:
    """One to three header elements, also nested ones, set to odd values and written by pydicom; a file that pydicom
    cannot read or write gets a few wrong bits instead.
    """
    try:
        dataset = dcmread(io.BytesIO(content))
        places = list(_elements(dataset))
        judged = [place for place in places if keyword_for_tag(place[1]) in _JUDGED]
        for _ in range(rng.randint(1, 3)):
            holder, tag = rng.choice(judged if judged and rng.random() < 0.8 else places)
            if rng.random() < 0.1:
                holder.pop(tag, None)
                continue
            vr = holder[tag].VR
            value = _odd_value(vr, "<" if dataset.original_encoding[1] else ">", rng)
            holder[tag] = RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)
        written = io.BytesIO()
        dataset.save_as(written)
        return written.getvalue()
    except Exception:  # whatever pydicom makes of files that are broken on purpose
        return _flipped(content, rng, 4)


def _elements(dataset: Dataset) -> Iterator[tuple[Dataset, int]]:
    """Every element but the pixels with the data set or item that holds it."""
    for element in dataset:
        if element.tag == 0x7FE00010:
            continue
        yield dataset, element.tag
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)


def _odd_value(vr: str, order: str, rng: random.Random) -> bytes:
    """An even number of bytes of no or little sense for a value representation."""
    match vr:
        case "US" | "SS" | "US or SS":
            value = struct.pack(order + "H", rng.choice(_NUMBERS)) * rng.choice((1, 1, 1, 1, 0, 2))
        case "FD" | "FL":
            number = rng.choice((0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf")))
            value = struct.pack(order + ("d" if vr == "FD" else "f"), number) * rng.choice((1, 1, 2))
        case "SQ":
            value = b""
        case "DS" if rng.random() < 0.5:
            value = b"\\".join(rng.choice(_TEXTS) for _ in range(rng.choice((2, 3, 6))))
        case _:
            value = rng.choice((*_TEXTS, str(rng.choice(_NUMBERS)).encode(), uid.SecondaryCaptureImageStorage.encode()))
    return value + b" " * (len(value) % 2)


def judge(batch: Batch) -> list[Verdict]:
    """Makes and reads the mutants of a batch; runs in the child, where time and memory are bounded."""
    path = batch.folder / f"{os.getpid()}.mutant"
    verdicts = []
    for number in range(batch.first, batch.first + batch.count):
        made = mutant(batch, number)
        path.write_bytes(made.content)
        read = partial(read_volume, path, any_sop_class=made.admit_all, include_nonvolumetric=made.admit_all)
        start = time.perf_counter()
        outcome = outcome_of(read)
        verdicts.append(Verdict(number, made.kind, made.source, outcome, time.perf_counter() - start))
    return verdicts


def outcome_of(read: Callable[[], Volume]) -> str:
    """ "accepted", a reason code, or what is wrong, with the line of our code that let it through."""
    try:
        volume = read()
    except BadFile as bad:
        return str(bad.reason)
    except BaseException as error:  # the defect that we look for; a panic of a Rust decoder is no Exception
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "data_setup" in frame.filename]
        where = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
        return f"raised {type(error).__name__}{where}"
    trouble = unsound(volume)
    return f"unsound {trouble}" if trouble else ACCEPTED


def unsound(volume: Volume) -> str:
    """The first promise of Volume and read_volume that does not hold, or ""."""
    voxels = volume.voxels
    promises = {
        "array": voxels.ndim == 3 and voxels.size > 0 and voxels.dtype.kind in "iu" and voxels.dtype.isnative,
        "memory order": voxels.flags.c_contiguous,
        "content": voxels.size > 0 and voxels.min() < voxels.max(),
        "bits": 1 <= volume.bits_stored <= 8 * voxels.dtype.itemsize,
        "spacing": all(step is None or (step > 0 and np.isfinite(step)) for step in volume.spacing_mm),
        "laterality": volume.laterality in ("R", "L", None),
        "volumetric": volume.volumetric in (True, False, None),
    }
    return next((name for name, kept in promises.items() if not kept), "")


def fuzz(run: Run, job: Callable[[Batch], list[Verdict]] = judge) -> Tally:
    """Judges all mutants of a run in children and saves every finding; prints nothing."""
    tally = Tally()
    start = time.monotonic()
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as name:
        folder = Path(name)
        write_seeds(folder)
        batches = [
            Batch(folder, run.edge, run.seed, first, min(_BATCH, run.count - first))
            for first in range(0, run.count, _BATCH)
        ]
        limits = IsolationLimits(timeout_s=run.slowest_s * _BATCH_TIME)
        for batch, outcome in zip(batches, run_isolated(job, batches, run.workers, limits), strict=True):
            verdicts = _one_by_one(batch, job, run.slowest_s) if outcome.record is None else outcome.record
            for verdict in verdicts:
                _count(verdict, batch, run, tally)
            if outcome.failure == "died" and not any(_is_death(verdict) for verdict in verdicts):
                tally.deaths[f"batch {batch.first}"] = f"{outcome.detail}, by no single file"
    tally.seconds = time.monotonic() - start
    return tally


def _one_by_one(batch: Batch, job: Callable[[Batch], list[Verdict]], slowest_s: float) -> list[Verdict]:
    """The verdicts of a batch that did not come back: the file that ends the child, or never ends, is found."""
    singles = [replace(batch, first=batch.first + number, count=1) for number in range(batch.count)]
    limits = IsolationLimits(timeout_s=slowest_s + 1)
    verdicts = []
    for single, outcome in zip(singles, run_isolated(job, singles, 1, limits), strict=True):
        if outcome.record is not None:
            verdicts += outcome.record
            continue
        if outcome.failure == "raised":
            raise RuntimeError(f"the fuzzer itself fails at seed {batch.seed}, number {single.first}: {outcome.detail}")
        made = mutant(single, single.first)
        how = "died " + outcome.detail if outcome.failure == "died" else "hangs"
        verdicts.append(Verdict(single.first, made.kind, made.source, how, slowest_s if how == "hangs" else 0.0))
    return verdicts


def _is_death(verdict: Verdict) -> bool:
    return verdict.outcome.startswith("died")


def _count(verdict: Verdict, batch: Batch, run: Run, tally: Tally) -> None:
    """Adds a verdict to the sums; saves the file if it shows something."""
    outcome = verdict.outcome
    if verdict.seconds > run.slowest_s and not _is_death(verdict):
        outcome = "hangs"
    tally.outcomes[outcome] += 1
    tally.kinds[verdict.kind] += 1
    tally.slowest_s = max(tally.slowest_s, verdict.seconds)
    if outcome == ACCEPTED or outcome in REASONS:
        return
    made = mutant(batch, verdict.number)
    name = f"{run.seed}-{verdict.number}-{re.sub(r'[^a-z0-9]+', '_', f'{made.kind} {outcome}'.lower())}.dcm"
    run.findings.mkdir(parents=True, exist_ok=True)
    (run.findings / name).write_bytes(made.content)
    shown = f"{outcome}; {made.kind} of {made.source}, admit_all={made.admit_all}, {verdict.seconds:.1f} s"
    (tally.deaths if _is_death(verdict) else tally.defects)[name] = shown


def machine() -> dict[str, str | int | None]:
    """Where the figures come from."""
    cpu = (
        re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text()) if platform.system() == "Linux" else None
    )
    packages = ("numpy", "pydicom", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pyjpegls", "python-gdcm", "pillow")
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def table(tally: Tally) -> str:
    """The counts of a run for a terminal, most frequent first, and every finding."""
    count = tally.outcomes.total()
    lines = [f"{number:8,}  {outcome}" for outcome, number in tally.outcomes.most_common()]
    lines.append(f"{count:8,}  mutants in {tally.seconds:.0f} s: {count / tally.seconds:.0f}/s")
    lines.append(
        f"slowest {tally.slowest_s:.2f} s; kinds: " + ", ".join(f"{k} {n}" for k, n in sorted(tally.kinds.items()))
    )
    lines += [f"DEFECT  {name}: {shown}" for name, shown in tally.defects.items()]
    lines += [f"DEATH   {name}: {shown}" for name, shown in tally.deaths.items()]
    lines.append(f"{len(tally.defects)} defects, {len(tally.deaths)} deaths of a decoder")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 1 if there is a defect."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz_reader", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--edge", type=Path, default=EDGE, help="a folder of files that are broken already")
    parser.add_argument("--findings", type=Path, default=Path("fuzz_findings"), help="where findings are saved")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    given = parser.parse_args(arguments)
    edge = given.edge if given.edge.is_dir() else None
    if edge is None:
        print(f"{given.edge} IS ABSENT: only the scans written here are damaged")
    tally = fuzz(Run(given.count, given.seed, given.workers, edge, given.findings))
    print(table(tally))
    if given.json:
        rate = given.count / tally.seconds
        figures = {**vars(given), "mutants_per_s": round(rate, 1), **vars(tally), "machine": machine()}
        given.json.write_text(json.dumps(figures, indent=1, default=str) + "\n")
    return 1 if tally.defects else 0


if __name__ == "__main__":
    from tests.faults import fuzz_reader  # children import the job by this name, not as __main__

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # a hung child would stay behind
    sys.exit(fuzz_reader.main())
