"""Every spelling of ckpt_dir and what it means."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oct_foundation.checkpoints.location import GcsUri, LocalPath, bucket_problem, parse_ckpt_dir


@pytest.mark.parametrize("value", [None, "", "  ", "None", "none", "NONE", " none ", "null", "Null", "~", " ~\n"])
def test_unset_values_name_no_place(value):
    assert parse_ckpt_dir(value) is None


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("/data/run", "/data/run"),
        (" /data/run/ ", "/data/run"),
        ("file:///data/my%20run", "/data/my run"),
        ("file://localhost/data/run", "/data/run"),
        ("/data/12:30/run", "/data/12:30/run"),
        ("/data/nonesuch", "/data/nonesuch"),
    ],
)
def test_local_places(value, path):
    assert parse_ckpt_dir(value) == LocalPath(path=Path(path))


def test_relative_paths_count_from_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert parse_ckpt_dir("runs/a") == LocalPath(path=tmp_path / "runs" / "a")
    assert parse_ckpt_dir("./a:b") == LocalPath(path=tmp_path / "a:b")


def test_the_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_ckpt_dir("~/ckpt") == LocalPath(path=tmp_path / "ckpt")


@pytest.mark.parametrize(
    ("value", "bucket", "prefix"),
    [
        ("gs://oct-runs/a/b", "oct-runs", "a/b"),
        ("gs://oct-runs/a/b/", "oct-runs", "a/b"),
        ("gs://oct-runs", "oct-runs", ""),
        ("gs://oct-runs/", "oct-runs", ""),
        (" gs://oct_runs.example.org/x ", "oct_runs.example.org", "x"),
    ],
)
def test_buckets(value, bucket, prefix):
    found = parse_ckpt_dir(value)
    assert found == GcsUri(bucket=bucket, prefix=prefix)
    assert parse_ckpt_dir(str(found)) == found


@pytest.mark.parametrize(
    "value",
    [
        "gs:/oct-runs/a",
        "gs:oct-runs",
        "gs://",
        "gs:///a",
        "gs://None/a",
        "gs://null",
        "gs://none",
        "gs://oct-runs/None",
        "gs://oct-runs/a//b",
        "gs://oct-runs/../b",
        "gs://oct-runs/./b",
        "gs://Oct-Runs/a",
        "gs://oct runs/a",
        "GS://oct-runs/a",
        "s3://oct-runs/a",
        "https://storage.googleapis.com/oct-runs",
        "hdfs:/a",
        "C:\\runs",
        "a:b",
        "$HOME/ckpt",
        "${output_dir}/ckpt",
        "gs://$BUCKET/a",
        "../ckpt",
        "/data/../ckpt",
        "None/ckpt",
        "/data/null/ckpt",
        "file://data/run",
        "file:/data/run",
        "file:///data/run?x=1",
        "file:///data/../run",
        "file:///data/a%00b",
        "/data/a\x00b",
        "/data/a\nb",
        "~nobody-of-this-name/ckpt",
        7,
        False,
    ],
)
def test_everything_else_is_refused_by_name_with_the_allowed_forms(value):
    with pytest.raises(ValueError, match=r"checkpoint\.ckpt_dir is") as refusal:
        parse_ckpt_dir(value)
    assert repr(value) in str(refusal.value)
    for form in ("a local path", "file:///", "gs://bucket/prefix", "null"):
        assert form in str(refusal.value)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("gs://None/x", "'None' is no bucket name: it looks like a value that was never set"),
        ("gs:///x", "'' is no bucket name: it looks like a value that was never set"),
        ("gs:/bucket/x", "gs: takes two slashes"),
        ("${output_dir}/x", "a variable in it was not expanded"),
        ("../x", "'..' is not taken"),
        ("s3://bucket/x", "scheme 's3' is unknown"),
    ],
)
def test_a_refusal_says_what_is_wrong(value, why):
    with pytest.raises(ValueError, match="RUN is") as refusal:
        parse_ckpt_dir(value, key="RUN")
    assert why in str(refusal.value)


@pytest.mark.parametrize(
    ("bucket", "ok"),
    [
        ("abc", True),
        ("ab", False),
        ("a" * 63, True),
        ("a" * 64, False),
        (".".join(["a" * 63] * 3), True),
        (".".join(["a" * 64] * 2), False),
        (".".join(["a" * 55] * 4), False),  # 223 characters
        ("-abc", False),
        ("abc-", False),
        ("_abc", False),
        ("a..b", False),
        ("goog-oct", False),
        ("my-google-bucket", False),
        ("192.168.5.4", False),
        ("1.2.3.4.5", True),
        ("abc\n", False),
    ],
)
def test_bucket_names_follow_the_rules_of_cloud_storage(bucket, ok):
    assert (bucket_problem(bucket) is None) == ok


@given(st.none() | st.text())
def test_no_text_ever_becomes_a_place_called_none(value):
    try:
        found = parse_ckpt_dir(value)
    except ValueError:
        return
    match found:
        case LocalPath(path=path):
            assert path.is_absolute()
            assert not {"none", "null", ".."} & {part.lower() for part in path.parts}
        case GcsUri(bucket=bucket):
            assert bucket_problem(bucket) is None
        case None:
            assert value is None or value.strip().lower() in {"", "none", "null", "~"}
