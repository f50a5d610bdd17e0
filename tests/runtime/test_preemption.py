"""The notice that the machine goes, from a metadata server on the loopback interface."""

import queue
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from oct_foundation.runtime import preemption
from oct_foundation.runtime.preemption import PreemptionNotice


class MetadataServer:
    """Answers as Google's does, only to those who send its header; `answers` may change while it runs."""

    def __init__(self) -> None:
        self.answers = {"preempted": "FALSE", "maintenance-event": "NONE"}
        self.status = 200
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                prefix = "/computeMetadata/v1/instance/"
                name = self.path.removeprefix(prefix)
                known = self.headers["Metadata-Flavor"] == "Google" and self.path.startswith(prefix)
                body = outer.answers[name].encode() if known else b"forbidden"
                self.send_response(outer.status if known else 403)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                outer.asked.append(name)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def wait_for_rounds(self, rounds: int) -> None:
        wanted, deadline = len(self.asked) + 2 * rounds, time.monotonic() + 60
        while len(self.asked) < wanted:
            assert time.monotonic() < deadline, "nobody asks"
            time.sleep(0.01)


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[MetadataServer]:
    server = MetadataServer()
    monkeypatch.setenv("GCE_METADATA_HOST", server.host)
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def notices() -> "queue.Queue[str]":
    """What the notice said; the notice itself is started by `watch`."""
    return queue.Queue()


@pytest.fixture
def watch(notices):
    started = []

    def begin() -> PreemptionNotice:
        started.append(PreemptionNotice(notices.put, poll_s=0.02))
        started[-1].start()
        return started[-1]

    yield begin
    for notice in started:
        notice.stop()


@pytest.mark.parametrize(
    ("key", "value"), [("preempted", "TRUE"), ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")]
)
def test_a_notice_that_comes_later_is_passed_on_once_with_its_reason(metadata, notices, watch, key, value):
    watch()
    metadata.wait_for_rounds(2)
    assert notices.empty()
    metadata.answers[key] = value
    assert f"{key} is {value}" in notices.get(timeout=60)
    time.sleep(0.2)  # ten polls: it would say it again
    assert notices.empty()


def test_a_migration_is_no_reason_to_stop(metadata, notices, watch):
    metadata.answers["maintenance-event"] = "MIGRATE_ON_HOST_MAINTENANCE"
    watch()
    metadata.wait_for_rounds(3)
    assert notices.empty()


def test_a_server_that_fails_for_a_while_is_asked_again(metadata, notices, watch):
    metadata.status, metadata.answers["preempted"] = 503, "TRUE"
    watch()
    metadata.wait_for_rounds(3)
    assert notices.empty()
    metadata.status = 200
    assert "preempted" in notices.get(timeout=60)


def test_after_stop_nothing_is_passed_on(metadata, notices, watch):
    notice = watch()
    metadata.wait_for_rounds(1)
    notice.stop()
    metadata.answers["preempted"] = "TRUE"
    time.sleep(0.2)
    assert notices.empty()


def test_a_proxy_of_the_environment_is_not_asked(metadata, notices, watch, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")  # free, and nobody listens on it any more
    metadata.answers["preempted"] = "TRUE"
    watch()
    assert "preempted" in notices.get(timeout=60)


def test_silence_delays_nothing_and_is_no_error(notices, watch, monkeypatch, capfd):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{silent.getsockname()[1]}")
        patient = PreemptionNotice(notices.put, poll_s=60.0)  # an answer may take as long
        begin = time.monotonic()
        patient.start()
        assert time.monotonic() - begin < 30, "it has waited for an answer"
        hasty = watch()
        time.sleep(0.2)
        for notice in (patient, hasty):
            notice.stop()
    assert notices.empty()
    assert capfd.readouterr().err == ""


def test_elsewhere_nothing_is_started(monkeypatch, watch, tmp_path):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.setattr(preemption, "_DMI_PRODUCT", tmp_path / "product_name")
    for product in (None, "QEMU Standard PC\n"):
        if product:
            (tmp_path / "product_name").write_text(product)
        before = set(threading.enumerate())
        watch()
        assert not set(threading.enumerate()) - before


def test_google_s_machines_are_known_by_their_product_name(monkeypatch, watch, tmp_path):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.setattr(preemption, "_HOST", "127.0.0.1:9")  # nobody answers here
    monkeypatch.setattr(preemption, "_DMI_PRODUCT", tmp_path / "product_name")
    (tmp_path / "product_name").write_text("Google Compute Engine\n")
    before = set(threading.enumerate())
    watch()
    assert [thread.name for thread in set(threading.enumerate()) - before] == ["preemption"]
