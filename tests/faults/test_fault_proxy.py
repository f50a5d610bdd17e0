"""Every fault is seen by a client, happens to the request it was meant for, and is counted only when it happened."""

import http.client
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fault_proxy import Fault, FaultProxy, Passed
from tests.faults.gcs_emulator import GcsEmulator

PROJECT = Path(__file__).resolve().parents[2]
CONTENT = bytes(range(256)) * 1024  # 256 kB: several parts of the proxy


class Storage(BaseHTTPRequestHandler):
    """GET gives CONTENT (/chunked in chunks, /closed until the end, /missing 404); PUT keeps what came."""

    protocol_version = "HTTP/1.1"
    kept: bytes | None = None
    wrote = threading.Event()

    def do_GET(self) -> None:
        self.send_response(404 if self.path == "/missing" else 200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(CONTENT), 100_000):
                part = CONTENT[start : start + 100_000]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
        elif self.path == "/closed":
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(CONTENT)
        else:
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()

    def do_PUT(self) -> None:
        size = int(self.headers["Content-Length"])
        content = self.rfile.read(size)
        type(self).kept = content if len(content) == size else None
        type(self).wrote.set()
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    """A proxy in front of a server of its own."""
    Storage.kept = None
    Storage.wrote.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Storage) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        proxy = FaultProxy(("127.0.0.1", server.server_port))
        yield proxy
        proxy.close()
        server.shutdown()


def ask(proxy: FaultProxy, path: str = "/a", method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    """Status and body over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
    try:
        connection.request(method, path, body)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/a", "/chunked", "/closed"])
def test_without_faults_all_passes_unchanged(proxy: FaultProxy, path: str) -> None:
    proxy.inject()
    assert ask(proxy, path) == (200, CONTENT)
    assert ask(proxy, "/missing")[0] == 404
    assert ask(proxy, "/a", "PUT", CONTENT) == (200, b"ok")
    assert Storage.kept == CONTENT
    assert proxy.unused() == []
    assert proxy.log[0] == Passed(f"GET {path} HTTP/1.1", None)


def test_one_connection_carries_many_requests(proxy: FaultProxy) -> None:
    proxy.inject(Fault(match="GET /b", action="status", status=429))
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
    found = []
    for method, path in (("GET", "/a"), ("HEAD", "/a"), ("GET", "/b"), ("GET", "/b"), ("GET", "/chunked")):
        connection.request(method, path)
        reply = connection.getresponse()
        found.append((reply.status, len(reply.read())))
    connection.close()
    full = len(CONTENT)
    assert found == [(200, full), (200, 0), (429, 0), (200, full), (200, full)]
    assert [passed.action for passed in proxy.log] == [None, None, "status", None, None]
    assert proxy.unused() == []


def test_skip_and_times_count_matching_requests_only(proxy: FaultProxy) -> None:
    proxy.inject(Fault(match="^GET /a ", action="status", status=503, skip=1, times=2))
    assert [ask(proxy, path)[0] for path in ("/a", "/b", "/a", "/b", "/a", "/a")] == [200, 200, 503, 200, 503, 200]
    assert proxy.unused() == []


def test_status_for_ever_and_the_server_never_hears(proxy: FaultProxy) -> None:
    proxy.inject(fault := Fault(match="PUT", action="status", status=403, times=None))
    assert proxy.unused() == [fault]
    assert [ask(proxy, "/a", "PUT", CONTENT)[0] for _ in range(3)] == [403] * 3
    assert Storage.kept is None
    assert proxy.unused() == []


@pytest.mark.parametrize("path", ["/a", "/chunked", "/closed"])
def test_flip_changes_one_bit_and_no_length(proxy: FaultProxy, path: str) -> None:
    proxy.inject(Fault(match="GET", action="flip", after=70_000))
    status, body = ask(proxy, path)
    changed = [(at, one ^ other) for at, (one, other) in enumerate(zip(body, CONTENT, strict=True)) if one != other]
    assert (status, changed) == (200, [(70_000, 1)])
    assert ask(proxy, path) == (200, CONTENT)
    assert proxy.unused() == []


@pytest.mark.parametrize("path", ["/a", "/chunked", "/closed"])
def test_truncate_gives_a_short_body_that_looks_whole(proxy: FaultProxy, path: str) -> None:
    proxy.inject(Fault(match="GET", action="truncate", after=70_000))
    assert ask(proxy, path) == (200, CONTENT[:70_000])
    assert ask(proxy, path) == (200, CONTENT)
    assert proxy.unused() == []


@pytest.mark.parametrize("path", ["/a", "/chunked"])
def test_cut_ends_a_download_in_its_body(proxy: FaultProxy, path: str) -> None:
    proxy.inject(Fault(match="GET", action="cut", after=70_000))
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        ask(proxy, path)
    assert ask(proxy, path) == (200, CONTENT)
    assert proxy.unused() == []


def test_cut_ends_an_upload_in_its_body(proxy: FaultProxy) -> None:
    proxy.inject(Fault(match="PUT", action="cut", after=1000))
    with pytest.raises(OSError):  # noqa: PT011  reset, broken pipe or no answer, as the client's buffers have it
        ask(proxy, "/a", "PUT", CONTENT * 40)
    assert Storage.wrote.wait(60)
    assert Storage.kept is None, "the server took a cut upload for a whole one"
    assert ask(proxy, "/a", "PUT", CONTENT) == (200, b"ok")
    assert proxy.unused() == []


def test_a_lost_reply_leaves_the_work_done(proxy: FaultProxy) -> None:
    proxy.inject(Fault(match="PUT", action="lose_reply"))
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask(proxy, "/a", "PUT", CONTENT)
    assert Storage.kept == CONTENT
    assert proxy.unused() == []


def test_delay_comes_before_the_reply(proxy: FaultProxy) -> None:
    proxy.inject(Fault(match="GET", action="delay", seconds=0.3))
    start = time.monotonic()
    assert ask(proxy) == (200, CONTENT)
    assert time.monotonic() - start >= 0.3
    assert proxy.unused() == []


@pytest.mark.parametrize(("method", "body"), [("GET", None), ("PUT", CONTENT)])
def test_slow_passes_all_at_the_rate(proxy: FaultProxy, method: str, body: bytes | None) -> None:
    proxy.inject(Fault(match=method, action="slow", bytes_per_s=len(CONTENT) * 2))
    start = time.monotonic()
    status, answer = ask(proxy, "/a", method, body)
    assert time.monotonic() - start >= 0.5
    assert (status, answer) == (200, b"ok" if body else CONTENT)
    assert Storage.kept == body
    assert proxy.unused() == []


@pytest.mark.parametrize("action", ["cut", "flip", "truncate"])
def test_a_fault_behind_the_end_of_the_body_is_not_counted_and_waits(proxy: FaultProxy, action: Any) -> None:
    proxy.inject(fault := Fault(match="/a", action=action, after=1000))
    assert ask(proxy, "/a", "PUT", b"short") == (200, b"ok")
    assert proxy.unused() == [fault]
    assert proxy.log == [Passed("PUT /a HTTP/1.1", None)]
    try:
        assert ask(proxy)[1] != CONTENT
    except (http.client.IncompleteRead, ConnectionError):
        assert action == "cut"
    assert proxy.unused() == []


def test_flip_and_truncate_leave_errors_alone(proxy: FaultProxy) -> None:
    proxy.inject(fault := Fault(match="GET", action="flip"))
    assert ask(proxy, "/missing") == (404, CONTENT)
    assert proxy.unused() == [fault]


def test_a_server_that_is_gone_looks_like_a_dead_connection(proxy: FaultProxy) -> None:
    proxy.inject()
    proxy.upstream = ("127.0.0.1", 1)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask(proxy)


def test_close_ends_idle_connections(proxy: FaultProxy) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
    connection.request("GET", "/a")
    connection.getresponse().read()
    proxy.close()
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):  # noqa: PT012  either call may notice
        connection.request("GET", "/a")
        connection.getresponse()
    connection.close()


@pytest.mark.parametrize(
    "wrong", [{"action": "explode"}, {"action": "cut", "times": 0}, {"action": "slow", "bytes_per_s": 0}]
)
def test_a_wrong_plan_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"allowed|at least"):
        Fault(match="x", **wrong)


def test_the_emulator_stores_lists_and_deletes(gcs: GcsEmulator) -> None:
    bucket = gcs.create_bucket("stores-and-lists")
    content = {"a/b c#1.dcm": b"", "a/ü.bin": CONTENT, "z": b"1"}
    for name, value in content.items():
        gcs.put(bucket, name, value)
    gcs.put(bucket, "z", b"22")
    assert gcs.names(bucket) == sorted(content)
    assert gcs.names(bucket, "a/") == ["a/b c#1.dcm", "a/ü.bin"]
    assert [gcs.get(bucket, name) for name in content] == [b"", CONTENT, b"22"]
    gcs.delete(bucket, "z")
    assert gcs.names(bucket) == sorted(set(content) - {"z"})


CLIENT = """
import sys
from google.cloud import storage
bucket = storage.Client(project="test").bucket(sys.argv[1])
content = bytes(range(256)) * 40_000  # 10 MB: above the limit of a single upload
blob = bucket.blob("big")
blob.chunk_size = 1 << 20
blob.upload_from_string(content, checksum=None)
assert bucket.blob("big").download_as_bytes(checksum="crc32c") == content
"""


def test_a_client_in_a_child_process_meets_the_faults(gcs: GcsEmulator) -> None:
    """google-cloud-storage retries a 503 and a cut by itself, in the middle of a resumable upload."""
    bucket = gcs.create_bucket("child-process")
    gcs.proxy.inject(
        Fault(match="^POST /upload", action="status", status=503),
        Fault(match="^PUT .*upload_id", action="cut", skip=2, after=300_000),
    )
    subprocess.run(
        [sys.executable, "-c", CLIENT, bucket], env={**os.environ, **gcs.environment}, check=True, timeout=120
    )
    assert gcs.proxy.unused() == []
    assert gcs.get(bucket, "big") == bytes(range(256)) * 40_000
    assert sum(passed.line.startswith("PUT") for passed in gcs.proxy.log) >= 11
