"""What is taken for a secret and what is not, and how a command line is shown."""

import pytest

from oct_foundation.tracking.redact import REDACTED, is_secret, looks_secret, redact_command


@pytest.mark.parametrize(
    "name",
    ["token", "HF_TOKEN", "wandb.api_key", "apiKey", "access-key", "private_key", "wandb_key", "clientSecret",
     "password", "passwd", "secrets.wandb"],
)  # fmt: skip
def test_a_text_under_such_a_name_is_a_secret(name):
    assert is_secret(name, "anything")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_tokens", 512),
        ("num_tokens", "512"),  # as an override gives it
        ("token_dropout", 1e-4),
        ("image_token", "<image>"),
        ("pad_token", "[PAD]"),
        ("use_cls_token", True),
        ("tokenizer", "bert-base"),
        ("image_key", "image"),
        ("sort_key", "time"),
        ("key", "x"),
        ("api_key", None),
        ("api_key", ""),
        ("secrets", {}),
    ],
)
def test_words_that_only_sound_like_it_are_none(name, value):
    assert not is_secret(name, value)


def test_a_password_may_be_a_number():
    assert is_secret("password", 1234)
    assert is_secret("api_key", "1234")


HEX = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    "value",
    [
        HEX,
        f"local-{HEX}",
        "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
        "AIzaSyA-0123456789abcdefghijklmnopqrstu",
        "ya29.a0AfB_byC1234567890",
        '{"private": "-----BEGIN PRIVATE KEY-----\\nMIIE"}',
        "https://reader:hunter2@host.example/data",
        "${oc.env:WANDB_API_KEY}",
        "prefix-${oc.env:HF_TOKEN,none}",
    ],
)
def test_well_known_keys_are_known_by_their_looks(value):
    assert looks_secret(value)


@pytest.mark.parametrize(
    "value",
    [
        HEX[:-1],
        HEX + "0" * 24,  # a SHA-256
        f"/data/{HEX}/scans",
        "hf_dataset",
        "gs://bucket/folder",
        "https://host.example:8080/path@2x",
        "${output_dir}/checkpoints",
        "${oc.env:HOME}/runs",
        "runs/a:b@c",
        40,
        None,
    ],
)
def test_harmless_values_are_left_in_peace(value):
    assert not looks_secret(value)


def test_a_command_line_loses_its_secrets_and_nothing_else():
    command = [
        "python", "-m", "pretraining.train", "a.yaml", "train.max_steps=3", "wandb.api_key=S1", "--token", "S2",
        "--password=S3", "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH", "data.root=https://a:b@host/x", "--device", "cpu",
    ]  # fmt: skip
    assert redact_command(command) == [
        "python", "-m", "pretraining.train", "a.yaml", "train.max_steps=3", f"wandb.api_key={REDACTED}", "--token",
        REDACTED, f"--password={REDACTED}", REDACTED, f"data.root={REDACTED}", "--device", "cpu",
    ]  # fmt: skip
