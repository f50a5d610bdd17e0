"""Secrets out of a configuration before it reaches a log, a tracker or a checkpoint."""

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"

_SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)


def redact(config: Any) -> Any:
    """The same tree of mappings and lists with each set value replaced whose key names a secret.

    A key that contains key, token, secret or password loses its value, whatever that is; None and booleans
    stay, for "no key" is worth knowing and no secret. A harmless `num_tokens` is lost with them: better than
    the reverse.
    """
    if isinstance(config, Mapping):
        return {
            name: REDACTED
            if _SECRET.search(str(name)) and value is not None and not isinstance(value, bool)
            else redact(value)
            for name, value in config.items()
        }
    if isinstance(config, list | tuple):
        return [redact(value) for value in config]
    return config
