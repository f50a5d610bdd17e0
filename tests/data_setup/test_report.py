"""The data report as its readers meet it: what the page says, what it must not hold, and how Chromium shows it."""

import base64
import hashlib
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.signal import fftconvolve

from data_setup import report
from data_setup.errors import MEANING, REMEDY, BadFile, Reason
from data_setup.index import IndexRow, PreparedSet
from data_setup.phantom_anatomy import random_anatomy, render
from data_setup.report import write_report

SHAPE = (8, 64, 96)
HOSTILE = '<script>alert("1")</script> & Söhne'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Page(HTMLParser):
    """All tags with their attributes; the text of the whole and of each element that has an id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text_of: dict[str, str] = {}
        self._open: list[tuple[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag not in ("meta", "img", "br", "col"):
            self._open.append((tag, values.get("id")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for _, name in self._open:
            if name is not None:
                self.text_of[name] = " ".join((self.text_of.get(name, "") + " " + data).split())

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [values for name, values in self.tags if name == tag]


def eye(number: int) -> np.ndarray:
    """uint8 SHAPE: a phantom; equal numbers, equal voxels."""
    return render(random_anatomy(np.random.default_rng([1, number])), SHAPE, np.random.default_rng([2, number]))


def accepted(name: str, **fields: Any) -> IndexRow:
    defaults: dict[str, Any] = {
        "format": "dicom",
        "source_shape": (97, 496, 512),
        "shape": SHAPE,
        "source_spacing_mm": (0.03, 0.004, 0.012),
        "vendor": "Heidelberg Engineering",
        "model": "Spectralis",
        "laterality": "R",
        "volumetric": True,
        "split": "train",
    }
    return IndexRow(id=name, status="accepted", **{**defaults, **fields})


def refused(name: str, reason: Reason, foreign: bool = False) -> IndexRow:
    bad = BadFile(reason, "found")
    return IndexRow(id=name, status="rejected", reason=reason, message=bad.message, foreign=foreign)


Write = Callable[[list[tuple[IndexRow, np.ndarray | None]]], PreparedSet]


@pytest.fixture
def prepared_of(tmp_path: Path) -> Write:
    """prepared_of(rows with volumes) -> a prepared set on disk; hashes are filled in."""

    def write(content: list[tuple[IndexRow, np.ndarray | None]]) -> PreparedSet:
        (tmp_path / "set" / "volumes").mkdir(parents=True)
        rows = []
        for row, volume in sorted(content, key=lambda pair: pair[0].id):
            if volume is not None:
                np.save(tmp_path / "set" / "volumes" / f"{row.id}.npy", volume)
                row = IndexRow.from_record({**vars(row), "sha256": hashlib.sha256(volume.tobytes()).hexdigest()})
            rows.append(row)
        return PreparedSet(tmp_path / "set", tuple(rows), {"volumes": "volumes", "settings_sha256": "abcdef" * 10})

    return write


@pytest.fixture
def prepared(prepared_of: Write) -> PreparedSet:
    """Ten volumes of two makers: e is upside down, f a darker copy of b on the other side, g a true copy of c."""
    brighter = np.clip(eye(1) * 0.8, 0, 255).astype(np.uint8)
    unknown = {"source_spacing_mm": (None, 0.004, None), "laterality": None, "vendor": HOSTILE, "model": None}
    return prepared_of(
        [
            *[(accepted(f"{letter}000", protocol="Macula"), eye(number)) for number, letter in enumerate("abcd")],
            (accepted("e000", volumetric=False), np.flip(eye(4), axis=1)),
            (accepted("f000", split="val"), brighter),
            (accepted("g000"), eye(2)),
            *[(accepted(f"{letter}000", **unknown), eye(number)) for number, letter in enumerate("hij", start=5)],
            (refused("r000", Reason.EMPTY_FILE), None),
            *[(refused(f"s00{number}", Reason.PIXEL_DATA_TRUNCATED), None) for number in range(4)],
            *[(refused(f"t00{number}", Reason.NOT_DICOM, foreign=True), None) for number in range(3)],
        ]
    )


@pytest.fixture
def html(prepared: PreparedSet, tmp_path: Path) -> str:
    return write_report(prepared, tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def page(html: str) -> Page:
    return Page(html)


def test_the_headline_counts_files(page: Page) -> None:
    found = {name: page.text_of[name] for name in ("looked-at", "usable", "refused", "refused-percent", "foreign")}
    expected = {"looked-at": "15", "usable": "10", "refused": "5", "refused-percent": "33.3 %", "foreign": "3"}
    assert found == expected


def test_refusals_are_counted_explained_and_given_a_remedy(page: Page) -> None:
    table = page.text_of["reasons"]
    first, second = table.index("pixel data truncated"), table.index("empty file")
    assert first < second  # the more frequent one leads
    assert "e.g. s000 , s001 , s002 4 80.0 %" in table[first:second]
    assert "The file ends in the middle of the image." in table[first:second]
    assert REMEDY[Reason.PIXEL_DATA_TRUNCATED] in table[first:second]
    assert "r000 1 20.0 %" in table[second:]
    assert "not dicom" not in table  # beside the scans, not among the refused


def test_every_reason_has_a_meaning() -> None:
    assert set(MEANING) == set(Reason)


def test_a_reason_of_a_newer_program_is_shown_with_its_message(prepared_of: Write, tmp_path: Path) -> None:
    row = IndexRow(id="a", status="rejected", reason="struck_by_lightning", message="Struck. Wait for the sun.")
    found = Page(write_report(prepared_of([(row, None)]), tmp_path / "r.html").read_text())
    assert "struck by lightning" in found.text_of["reasons"]
    assert "Struck. Wait for the sun." in found.text_of["reasons"]


def test_counts_of_the_usable_volumes(page: Page) -> None:
    counts = page.text_of["counts"]
    for part in (
        f"Vendor Heidelberg Engineering 7 {HOSTILE} 3",
        "Model Spectralis 7 not stated 3",
        "Protocol not stated 6 Macula 4",
        "Laterality right eye (R, OD) 7 not stated 3",
        "Split train 9 val 1",
        "Volume parallel B-scans 9 radial, circular or single 1",
        "File format dicom 10",
    ):
        assert part in counts


def test_sizes_and_spacings_with_the_unknown_ones(page: Page) -> None:
    assert page.text_of["sizes"] == "B-scans (D) 97 10 Rows in depth (H) 496 10 A-scans across (W) 512 10"
    assert page.text_of["spacings"] == (
        "Between B-scans (D) 30 7 unknown 3 In depth (H) 4 10 Between A-scans (W) 12 7 unknown 3"
    )


def test_many_different_sizes_become_ten_bins() -> None:
    bars = report._binned([*range(100), None])
    assert [bar.number for bar in bars] == [10] * 10 + [1]
    assert bars[0].label == "0 to 9.9"
    assert sum(bar.share for bar in bars) == pytest.approx(1)


def test_grey_levels_per_vendor_match_numpy(page: Page, prepared: PreparedSet) -> None:
    rows = [row for row in prepared.accepted() if row.vendor == HOSTILE]
    voxels = np.concatenate([prepared.volume(row).ravel() for row in rows])  # 8 B-scans: all are looked at
    assert f"{HOSTILE} 0 64 128 192 255 median {np.sort(voxels)[voxels.size // 2]}" in page.text_of["levels"]
    assert f"{np.mean(voxels == 255):.1%}".replace("%", " % white (255)") in page.text_of["levels"]


def test_duplicates_across_the_split_are_flagged_as_leak_and_others_are_not(page: Page) -> None:
    found = page.text_of["duplicates"]
    assert found.count("Suspected leak") == 1
    leak, same_side = found.index("Suspected leak"), found.index("Identical")
    assert leak < same_side
    assert "Alike , 2 volumes" in found[leak:same_side]
    assert "train 1, val 1 b000 train , f000 val" in found[leak:same_side]
    assert "2 volumes · train 2 c000 train , g000 train" in found[same_side:]
    assert page.text_of["leaks"].startswith("1 group of look-alikes lies on two sides")


def test_only_the_scan_on_its_head_is_a_suspected_flip(page: Page) -> None:
    found = page.text_of["flips"]
    assert re.findall(r"[a-j]000", found) == ["e000", "e000"]  # in the list and under its picture
    assert float(found.split()[1]) > 0.5


def test_each_vendor_has_at_most_six_pictures_in_true_proportions(page: Page, html: str) -> None:
    sheet = html[html.index('id="contact-sheet"') : html.index("<h2>Near-duplicates")]
    assert len(Page(sheet).attributes("img")) == 6 + 3
    assert page.text_of["contact-sheet"].startswith("Heidelberg Engineering · 6 of 7 a000")
    assert page.text_of["contact-sheet"].count("spacing unknown, not to scale") == 3
    first, last = (Page(sheet).attributes("img")[place]["src"] for place in (0, -1))
    assert Page(sheet).attributes("img")[0]["alt"] == "middle B-scan of volume a000"
    assert picture_in(first).size == (480, round(480 * (496 * 0.004) / (512 * 0.012)))
    assert picture_in(last).size == (480, round(480 * 496 / 512))
    shown = np.asarray(picture_in(first).resize((96, 64)), dtype=float)
    assert np.corrcoef(shown.ravel(), eye(0)[4].ravel())[0, 1] > 0.9


def picture_in(uri: str | None) -> Image.Image:
    assert uri is not None
    assert uri.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


def test_the_page_warns_and_needs_nothing_but_itself(html: str, page: Page, prepared: PreparedSet) -> None:
    assert "This page shows patients" in html
    assert "licence" in html
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert all((values["src"] or "").startswith("data:") for values in page.attributes("img"))
    assert not any("href" in values for _, values in page.tags)
    assert not re.search(r"https?://|url\(|@import", html)
    assert str(prepared.folder) not in html


def test_what_files_say_is_escaped(html: str) -> None:
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt; &amp; Söhne" in html


def test_equal_sets_give_equal_bytes_and_progress_is_told(prepared: PreparedSet, tmp_path: Path, html: str) -> None:
    calls: list[tuple[int, int]] = []
    again = write_report(prepared, tmp_path / "new" / "again.html", lambda done, total: calls.append((done, total)))
    assert again.read_text(encoding="utf-8") == html
    assert calls == [(done, 10) for done in range(1, 11)]
    assert [path.name for path in again.parent.iterdir()] == ["again.html"]


def test_a_report_that_fails_leaves_the_old_page(prepared: PreparedSet, tmp_path: Path) -> None:
    target = tmp_path / "out" / "report.html"
    target.parent.mkdir()
    target.write_text("the old page")
    (prepared.folder / "volumes" / "j000.npy").unlink()
    with pytest.raises(FileNotFoundError):
        write_report(prepared, target)
    assert target.read_text() == "the old page"
    assert list(target.parent.iterdir()) == [target]


def test_a_set_without_a_usable_volume_has_a_page(prepared_of: Write, tmp_path: Path) -> None:
    rows = [(refused("a", Reason.CONSTANT_IMAGE), None)]
    found = Page(write_report(prepared_of(rows), tmp_path / "r.html").read_text(encoding="utf-8"))
    assert found.text_of["usable"] == "0"
    assert found.text_of["refused-percent"] == "100.0 %"
    assert found.attributes("img") == []


@pytest.fixture
def chromium(tmp_path: Path) -> Callable[..., str]:
    """chromium(page, *options) -> its standard output."""
    if CHROMIUM is None:
        pytest.skip(
            "CHROMIUM ABSENT: nobody has looked at the rendered page. Install chromium; this check did NOT run."
        )

    def run(page: Path, *options: str) -> str:
        command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'chromium'}", *options, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return run


def test_chromium_shows_the_counts_and_the_pictures(
    prepared: PreparedSet, tmp_path: Path, chromium: Callable[..., str]
) -> None:
    target, shot = write_report(prepared, tmp_path / "report.html"), tmp_path / "shot.png"
    rendered = Page(chromium(target, "--dump-dom"))
    assert rendered.text_of["looked-at"] == "15"
    assert rendered.text_of["refused-percent"] == "33.3 %"
    uris = [values["src"] for values in rendered.attributes("img")]
    assert len(uris) == 9 + 2 + 2 + 1  # contact sheet, two pairs, one flip

    chromium(target, "--window-size=1200,4000", f"--screenshot={shot}")
    screen = np.asarray(Image.open(shot).convert("L"), dtype=float)
    assert screen.shape == (4000, 1200)
    # Those of the contact sheet that stand nowhere else: a and d of its first maker, h, i and j of its second.
    once = [uri for uri in uris[:9] if uris.count(uri) == 1]
    likeness, tops, lefts = zip(*(found_at(screen, picture_in(uri)) for uri in once), strict=True)
    assert len(once) == 5
    assert min(likeness) > 0.97
    assert tops[0] < tops[1] < tops[2] == tops[3] == tops[4]
    assert lefts[0] == lefts[1] == lefts[2] < lefts[3] < lefts[4]


def found_at(screen: np.ndarray, picture: Image.Image) -> tuple[float, int, int]:
    """Where on the screen a picture of 336 pixels' width is: the greatest correlation, its row and its column."""
    width = 336  # a third of 1040 less two gaps of 16
    shown = np.asarray(picture.resize((width, round(width * picture.height / picture.width))), dtype=float)
    pattern = shown - shown.mean()
    box = np.ones_like(pattern)
    products = fftconvolve(screen, pattern[::-1, ::-1], mode="valid")
    means = fftconvolve(screen, box, mode="valid") / box.size
    spread = fftconvolve(screen**2, box, mode="valid") / box.size - means**2
    # Flat paper has no spread but rounding: one grey level squared keeps the division sane.
    likeness = products / box.size / (np.sqrt(np.maximum(spread, 1)) * pattern.std())
    top, left = np.unravel_index(int(likeness.argmax()), likeness.shape)
    return float(likeness[top, left]), int(top), int(left)
