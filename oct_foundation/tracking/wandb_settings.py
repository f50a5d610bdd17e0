"""Where rows for Weights & Biases go on this machine: by settings, environment and netrc, before wandb is imported."""

import logging
import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args
from urllib.parse import urlsplit

Mode = Literal["online", "offline", "disabled"]

# Hosts under which `wandb login` has kept keys; a server of one's own is named by WANDB_BASE_URL.
_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WandbSettings:
    """Where rows go. auto: WANDB_MODE where it is set, else online with a key, else offline."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "octfm"
    entity: str | None = None
    tags: tuple[str, ...] = ()
    run_name: str | None = None
    init_timeout_s: float = 30.0
    finish_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.mode not in ("auto", *get_args(Mode)):
            raise ValueError(f"wandb.mode is {self.mode!r}; allowed: auto, online, offline, disabled")
        if not self.project or set(self.project) & set("/\\#?%:"):
            raise ValueError(f"wandb.project is {self.project!r}; a name without / \\ # ? % : is allowed")
        for name in ("init_timeout_s", "finish_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"wandb.{name} is {getattr(self, name)!r}; seconds > 0 are allowed")


def resolve_mode(settings: WandbSettings, environ: Mapping[str, str]) -> Mode:
    """What `settings.mode` comes to here, by environment and netrc; the network is not touched.

    Without a key it is never online: wandb would ask for one on the terminal and wait.
    """
    wish = settings.mode
    if wish == "auto" and (by_environment := environ.get("WANDB_MODE", "").lower()) in get_args(Mode):
        wish = cast(Mode, by_environment)
    match wish:
        case "auto":
            return "online" if _has_key(environ) else "offline"
        case "online" if not _has_key(environ):
            _log.warning("W&B: online was asked for, but there is no key (WANDB_API_KEY or netrc): offline")
            return "offline"
        case _:
            return wish


def _has_key(environ: Mapping[str, str]) -> bool:
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    own_host = urlsplit(environ.get("WANDB_BASE_URL", "")).hostname
    names = [environ["NETRC"]] if environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for name in names:
        try:
            hosts = netrc.netrc(os.path.expanduser(name)).hosts
        except (OSError, netrc.NetrcParseError):
            continue
        if any(host in hosts for host in ((own_host,) if own_host else _HOSTS)):
            return True
    return False
