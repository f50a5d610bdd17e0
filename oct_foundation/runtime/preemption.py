"""Google's notice that this machine is about to go: a Spot preemption, or maintenance that ends the machine.

It comes up to 30 s before the end, often earlier than the TERM of the shutdown. One thread per host polls the metadata
server and calls back once; on other machines nothing happens.
"""

import os
import threading
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

_DMI_PRODUCT = Path("/sys/class/dmi/id/product_name")  # "Google", "Google Compute Engine"
_HOST = "metadata.google.internal"
# What asks for a stop. MIGRATE_ON_HOST_MAINTENANCE does not: the machine goes on elsewhere.
_NOTICES = {
    "preempted": ("TRUE", "this machine is being preempted"),
    "maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE", "this machine is being taken for maintenance"),
}


class PreemptionNotice:
    """Calls `on_notice` with the reason, once, from a thread of its own."""

    def __init__(self, on_notice: Callable[[str], None], *, poll_s: float = 2.0) -> None:
        """poll_s: seconds between two looks, also how long an answer may take."""
        self._on_notice, self._poll_s = on_notice, poll_s
        self._stopped = threading.Event()

    def start(self) -> None:
        """Returns at once. GCE_METADATA_HOST (Google's own variable) names another server, on any machine."""
        host = os.environ.get("GCE_METADATA_HOST")
        if host or _on_google():
            threading.Thread(target=self._watch, args=(host or _HOST,), name="preemption", daemon=True).start()

    def stop(self) -> None:
        """No notice is passed on any more; returns at once, may be called twice."""
        self._stopped.set()

    def _watch(self, host: str) -> None:
        # Never through a proxy: it would answer for another machine, or not at all.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not self._stopped.is_set():
            for key, (wanted, reason) in _NOTICES.items():
                if self._ask(opener, f"http://{host}/computeMetadata/v1/instance/{key}") == wanted:
                    if not self._stopped.is_set():
                        self._on_notice(f"{reason} ({key} is {wanted})")
                    return
            self._stopped.wait(self._poll_s)

    def _ask(self, opener: urllib.request.OpenerDirector, url: str) -> str | None:
        """The server's answer, None where there is none: silence is no notice."""
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        try:
            with opener.open(request, timeout=self._poll_s) as answer:
                return answer.read(100).decode("ascii", "replace").strip()
        except (OSError, HTTPException):  # URLError and time-outs are OSErrors
            return None


def _on_google() -> bool:
    try:
        return "Google" in _DMI_PRODUCT.read_text()
    except OSError:
        return False
