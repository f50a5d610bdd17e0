"""YAML and key=value overrides -> a frozen dataclass, or one readable error. The only file that knows OmegaConf.

Strict to the last key: an unknown key names its neighbours, a wrong type names the key. A secret is refused, and no
message shows it: the configuration goes to config.yaml, to every checkpoint and to the tracker.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from oct_foundation.tracking.redact import is_secret, looks_secret

_Settings = TypeVar("_Settings")
_SECRETS_BELONG = (
    "Secrets come from the environment only: WANDB_API_KEY for W&B, HF_TOKEN for Hugging Face, "
    "GOOGLE_APPLICATION_CREDENTIALS (the path of a file) for Google. Remove it here, and if others could read it, "
    "replace it there"
)


class ConfigError(ValueError):
    """The configuration cannot be run; the message names the key, what was found and what is allowed."""


def load_settings(
    schema: type[_Settings],
    path: Path | None,
    overrides: Sequence[str],
    *,
    defaults: Mapping[str, object] | None = None,
    short_names: Mapping[str, str] | None = None,
    moved_keys: Mapping[str, str] | None = None,
    known_keys_only: bool = False,
) -> _Settings:
    """Reads YAML at `path` (None: the schema's defaults alone), applies `key.sub=value` overrides, checks everything.

    defaults fill keys that are still null; short_names are allowed in overrides for longer keys; moved_keys: what to
    say of keys that another program has in another place. known_keys_only skips what a file says beyond the schema.
    Raises ConfigError with one readable message.
    """
    where = str(path) if path else "the command line"
    if path is not None and not path.is_file():
        raise ConfigError(f"config {path} {'is no file' if path.exists() else 'does not exist'}" + _beside(path))
    given: list[DictConfig] = []
    try:
        typed = OmegaConf.from_dotlist([_spelled_out(item, short_names or {}) for item in overrides])
        given = [OmegaConf.load(path)] if path else []  # type: ignore[list-item]
        for source in (*given, typed):
            _refuse_secrets(OmegaConf.to_container(source))
        if known_keys_only:
            given = [_within(schema, source) for source in given]
        given.append(typed)
        merged = OmegaConf.merge(OmegaConf.structured(schema), *given)
        absent = {key: value for key, value in (defaults or {}).items() if OmegaConf.select(merged, key) is None}
        merged = OmegaConf.merge(merged, absent)
        _refuse_secrets(OmegaConf.to_container(merged, resolve=True))  # with what interpolations have brought
        settings = OmegaConf.to_object(merged)
    except (ConfigKeyError, ConfigAttributeError) as error:
        key = str(error.full_key)
        advice = (moved_keys or {}).get(key) or _nearest(key, schema)
        raise ConfigError(f"{where}: unknown key {key!r}; {advice}") from None
    except MissingMandatoryValue as error:
        raise ConfigError(f"{where}: {error.full_key} has no value, and no default exists for it") from None
    except OmegaConfBaseException as error:
        key, value = (error.full_key, error.value) if error.full_key else _culprit(given, schema)
        raise ConfigError(f"{where}: {key}: {_plain(str(error.msg or error).splitlines()[0], value)}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    assert isinstance(settings, schema)
    return settings


def value_of(key: str, path: Path, overrides: Sequence[str] = ()) -> str | None:
    """What `key` (of the top level) has in an override or in the file, None where neither names it; checks nothing."""
    for override in reversed(overrides):
        name, equals, value = override.partition("=")
        if name == key and equals:
            return value
    try:
        found = OmegaConf.load(path) if path.is_file() else None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    named = OmegaConf.select(found, key) if isinstance(found, DictConfig) else None
    return None if named is None else str(named)


def _refuse_secrets(node: object, key: str = "") -> None:
    """Raises ConfigError, which names the key and not the value, for a secret in nested dicts and lists."""
    if isinstance(node, dict):
        for name, value in node.items():
            _refuse_secrets(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list | tuple):
        for value in node:
            _refuse_secrets(value, key)
    elif is_secret(key, node):
        raise ConfigError(f"{key} has the name of a secret, and a value (not shown). {_SECRETS_BELONG}")
    elif looks_secret(node):
        raise ConfigError(f"the value of {key} looks like a secret (not shown). {_SECRETS_BELONG}")


def to_yaml(settings: Any) -> str:
    """The settings as YAML that `load_settings` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(settings))


def _spelled_out(override: str, short_names: Mapping[str, str]) -> str:
    """`max_steps=20` as `train.max_steps=20`; raises ConfigError for what is no key=value."""
    key, equals, value = override.partition("=")
    if looks_secret(key) or (not equals and is_secret(key, key)):
        raise ConfigError(f"an override looks like a secret (not shown). {_SECRETS_BELONG}")
    _refuse_secrets(value, key)  # before anything that is wrong with it is told
    if not equals:
        raise ConfigError(f"override {override!r} is not of the form key=value, for example train.max_steps=10")
    return f"{short_names.get(key, key)}={value}"


def _within(schema: type, source: DictConfig) -> DictConfig:
    """The part of `source` whose keys the schema has."""
    known = set(_all_keys(schema))
    reduced = OmegaConf.create({})
    for key in _leaves(OmegaConf.to_container(source)):
        if key in known:
            OmegaConf.update(reduced, key, OmegaConf.select(source, key))
    return reduced


def _plain(text: str, value: object) -> str:
    """A message of OmegaConf without its own names for things."""
    if found := re.fullmatch(r"TupleConfig length (\d+) does not match type hint length (\d+)", text):
        return f"{value} has {found[1]} values, {found[2]} are needed"
    if "is not a TupleConfig" in text:
        return f"{value} is no list; write [a,b,c]"
    return text.replace("'$VALUE'", f"in {value}")


def _culprit(given: Sequence[DictConfig], schema: type) -> tuple[str, object]:
    """Key and value that OmegaConf refuses without naming them (a tuple of the wrong length): each is tried alone."""
    empty = OmegaConf.structured(schema)
    for source in given:
        for key in _leaves(OmegaConf.to_container(source)):
            try:
                OmegaConf.merge(empty, _only(source, key))
            except OmegaConfBaseException:
                return key, OmegaConf.select(source, key)
    return "a value", "it"


def _leaves(node: object, prefix: str = "") -> Iterator[str]:
    """Dotted names of everything in nested dicts that is no dict."""
    if not isinstance(node, dict):
        yield prefix
        return
    for name, value in node.items():
        yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))


def _only(source: DictConfig, key: str) -> DictConfig:
    """`source` reduced to one key."""
    reduced = OmegaConf.create({})
    OmegaConf.update(reduced, key, OmegaConf.select(source, key))
    return reduced


def _all_keys(kind: type, prefix: str = "") -> Iterator[str]:
    for entry in dataclasses.fields(kind):
        yield prefix + entry.name
        for inner in (entry.type, *get_args(entry.type)):  # or such a section, or None
            if dataclasses.is_dataclass(inner) and isinstance(inner, type):
                yield from _all_keys(inner, f"{prefix}{entry.name}.")


def _nearest(key: str, schema: type) -> str:
    """Known keys that look like `key`, or whose last word does: a misplaced key is as common as a misspelt one."""
    known = list(_all_keys(schema))
    last = key.rsplit(".", 1)[-1]
    by_last: dict[str, list[str]] = {}
    for candidate in known:
        by_last.setdefault(candidate.rsplit(".", 1)[-1], []).append(candidate)
    close = [name for word in difflib.get_close_matches(last, by_last, n=3, cutoff=0.7) for name in by_last[word]]
    close += [name for name in difflib.get_close_matches(key, known, n=3, cutoff=0.7) if name not in close]
    if close:
        return f"did you mean {' or '.join(close[:3])}?"
    parent = key.rsplit(".", 1)[0] + "." if "." in key else ""
    siblings = [name for name in known if name.startswith(parent) and "." not in name[len(parent) :]]
    return f"allowed here: {', '.join(siblings)}"


def _beside(path: Path) -> str:
    folder = next((place for place in (path, path.parent) if place.is_dir()), Path("configs"))
    found = sorted(str(other) for other in folder.glob("*.yaml"))
    return f"; there are: {', '.join(found)}" if found else ""
