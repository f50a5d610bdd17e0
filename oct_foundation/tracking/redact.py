"""What counts as a secret, and how it leaves a configuration or a command line before anybody can read it.

Secrets come from the environment only: pretraining/config_file.py refuses what is found here, and what still comes to
a log, a tracker or a file is replaced.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

REDACTED = "[redacted]"

# A tokenizer is none; of keys only those that open something: image_key and sort_key are names of fields.
_NAME = re.compile(r"token(?!iz)|secret|passw(?:or)?d|(?:api|access|private|wandb)[_-]?key", re.IGNORECASE)
# What the word "token" also means: a number of them (num_tokens: 512), or a word of a vocabulary ("<image>", "[PAD]").
_NUMBER = re.compile(r"[+-]?[\d_.]+(?:e[+-]?\d+)?", re.IGNORECASE)
_VOCABULARY = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")
_VALUE = re.compile(
    r"\A(?:local-)?[0-9a-f]{40}\Z"  # W&B. A git commit has this form as well: better refused than published
    r"|\bhf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|\bAIza[\w-]{30,}"  # a Google API key
    r"|\bya29\.[\w-]{10,}"  # what `gcloud auth print-access-token` prints
    r"|-----BEGIN "  # a private key, alone or within a service account's JSON
    r"|\b[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@"  # user:password@host
    # would be resolved, and lie in config.yaml and in every checkpoint
    r"|\$\{oc\.env:\s*\w*(?:token|secret|passw|key)",
    re.IGNORECASE,
)


def is_secret(name: str, value: object) -> bool:
    """Whether what stands under this name is one that nobody else may read.

    None, "", booleans and empty collections never are: "no key" is worth knowing.
    """
    if value is None or isinstance(value, bool) or value in ("", [], {}, ()):
        return False
    found = _NAME.search(name)
    if found is None:
        return False
    harmless = _NUMBER.fullmatch(str(value)) or _VOCABULARY.fullmatch(str(value))
    return not (found.group().lower() == "token" and harmless)


def looks_secret(value: object) -> bool:
    """Whether a text, under whatever name, has the form of a well-known key or reads one from the environment."""
    return isinstance(value, str) and _VALUE.search(value) is not None


def redact(config: Any) -> Any:
    """The same tree of mappings and lists, in which what a secret's name stands over is replaced, whatever it is.

    Looks alone replace nothing here: git_sha is 40 hexadecimal digits, too.
    """
    if isinstance(config, Mapping):
        return {name: REDACTED if is_secret(str(name), value) else redact(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [redact(value) for value in config]
    return config


def redact_command(command: Sequence[str]) -> list[str]:
    """A command line in which `key=value`, `--key=value` and `--key value` have lost their secrets."""
    shown: list[str] = []
    for before, argument in zip(["", *command], command, strict=False):
        name, equals, value = argument.partition("=")
        if equals and (is_secret(name, value) or looks_secret(value)):
            shown.append(f"{name}={REDACTED}")
        elif looks_secret(argument) or (before.startswith("--") and "=" not in before and is_secret(before, argument)):
            shown.append(REDACTED)
        else:
            shown.append(argument)
    return shown
