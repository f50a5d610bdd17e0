"""A loopback TCP proxy between an HTTP client and a server that breaks chosen requests in chosen ways.

Enters a plan of faults, each naming requests by a pattern; leaves a log and the faults that never happened. A fault
that never happened proves nothing, so every test ends with `assert proxy.unused() == []`.
"""

import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple, get_args

Action = Literal["cut", "status", "delay", "flip", "truncate", "slow", "lose_reply"]

_PART_BYTES = 1 << 16
_SLOW_PARTS_PER_S = 20
_RESET = struct.pack("ii", 1, 0)  # linger for 0 s: close() sends RST, as a dying link does
_NO_BODY_STATUS = (b"204", b"304")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to the `times` (None: all) requests after the first `skip` whose line "METHOD target HTTP/1.1"
    has `match` in it.

    cut: the connection is reset `after` bytes into the body of the request, or of a good reply if the request has
    no body. status: `status` is answered, and the server never hears. delay: `seconds` pass first. flip: the lowest bit
    of byte `after` of a good reply is turned. truncate: its body ends after `after` bytes, Content-Length
    agrees. slow: bodies pass at `bytes_per_s`. lose_reply: the server has done it, the client is cut off.
    A request whose body is too short for the fault passes unharmed, and the fault waits for the next.
    """

    match: str
    action: Action
    skip: int = 0
    times: int | None = 1
    after: int = 0
    status: int = 503
    seconds: float = 0.2
    bytes_per_s: int = 1_000_000

    def __post_init__(self) -> None:
        re.compile(self.match)
        if self.action not in get_args(Action):
            raise ValueError(f"action is {self.action!r}; allowed: {', '.join(get_args(Action))}")
        if self.times is not None and self.times < 1:
            raise ValueError(f"times is {self.times}; it must be at least 1, or None for every request")
        if min(self.skip, self.after, self.seconds, self.bytes_per_s - 1) < 0:
            raise ValueError("skip, after and seconds must be 0 or more, bytes_per_s at least 1")


_NONE = Fault(match="", action="delay", seconds=0)  # stands for the parameters where there is no fault


class Passed(NamedTuple):
    """A request line and what was done to it, None if nothing."""

    line: str
    action: Action | None


class _Armed:
    """A fault of the plan and how often it met a request, is at one, and has happened. Guarded by the proxy's lock."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.skipped = self.claimed = self.happened = 0

    @property
    def is_open(self) -> bool:
        """True if it may still happen to a request."""
        return self.fault.times is None or self.claimed + self.happened < self.fault.times


class _Claim:
    """The fault that a request met, or none, and whether it has happened to it."""

    def __init__(self, armed: _Armed | None) -> None:
        self.armed = armed
        self.fault = armed.fault if armed else _NONE
        self.action: Action | None = armed.fault.action if armed else None
        self.happened = False


class _Reply(NamedTuple):
    """What the client gets; lasts: the connection stays open for another request; is_cut: it is reset after this."""

    head: bytes
    body: bytes
    lasts: bool = True
    is_cut: bool = False


class _CutOffError(Exception):
    """The connection to the client ends here, without another byte."""


class FaultProxy:
    """Listens on a free port of 127.0.0.1 from its creation on; set `upstream` before the first request."""

    def __init__(self, upstream: tuple[str, int] | None = None) -> None:
        self.upstream = upstream
        self._lock = threading.Lock()
        self._plan: list[_Armed] = []
        self._log: list[Passed] = []
        self._connections: set[socket.socket] = set()
        self._listener = _Listener(("127.0.0.1", 0), self)
        self.port: int = self._listener.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # The default poll of 0.5 s would be the time that close() takes.
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def inject(self, *faults: Fault) -> None:
        """Begins a new plan and an empty log; the first fault that matches a request and is not used up takes it."""
        with self._lock:
            self._plan = [_Armed(fault) for fault in faults]
            self._log = []

    def unused(self) -> list[Fault]:
        """The faults that have not happened as often as planned (times=None: not once)."""
        with self._lock:
            return [armed.fault for armed in self._plan if armed.happened < (armed.fault.times or 1)]

    @property
    def log(self) -> list[Passed]:
        """Every request since the plan began, in the order in which they ended."""
        with self._lock:
            return list(self._log)

    def close(self) -> None:
        """Ends the listener and every connection."""
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # ended in between
                continue

    def serve(self, client: socket.socket) -> None:
        """Passes on the requests of one connection until either side ends it."""
        assert self.upstream is not None, "set proxy.upstream before the first request"
        try:
            with client, socket.create_connection(self.upstream) as server:
                with self._lock:
                    self._connections |= {client, server}
                try:
                    streams = client.makefile("rb"), server.makefile("rb")
                    while self._exchange(client, server, *streams):
                        pass
                except _CutOffError:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                finally:
                    for stream in streams:  # a socket stays open as long as a file of it does
                        stream.close()
                    with self._lock:
                        self._connections -= {client, server}
        except (OSError, ValueError):  # either side is gone: the client sees the end of its connection
            return

    def _exchange(self, client: socket.socket, server: socket.socket, asked: BinaryIO, answered: BinaryIO) -> bool:
        """One request and its reply; False if the connection ends with it. Raises _CutOffError."""
        head = _read_head(asked)
        if not head:
            return False
        line = head.split(b"\r\n", 1)[0].decode("latin-1")
        claim = self._claim(line)
        try:
            reply = _answer(head, line, claim, server, asked, answered)
        finally:  # before the client hears: its next request, or the test, finds the plan up to date
            self._settle(line, claim)
        client.sendall(reply.head)
        for piece in _paced(reply.body, claim):
            client.sendall(piece)
        if reply.is_cut:
            raise _CutOffError
        return reply.lasts

    def _claim(self, line: str) -> _Claim:
        """The fault for this request, if any, held until it is settled."""
        with self._lock:
            for armed in self._plan:
                if not armed.is_open or not re.search(armed.fault.match, line):
                    continue
                if armed.skipped < armed.fault.skip:
                    armed.skipped += 1
                    continue
                armed.claimed += 1
                return _Claim(armed)
        return _Claim(None)

    def _settle(self, line: str, claim: _Claim) -> None:
        with self._lock:
            if claim.armed is not None:
                claim.armed.claimed -= 1
                claim.armed.happened += claim.happened
            self._log.append(Passed(line, claim.action if claim.happened else None))


class _Listener(socketserver.ThreadingTCPServer):
    """A thread per connection, all ending with the process."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], proxy: FaultProxy) -> None:
        self._proxy = proxy
        super().__init__(address, socketserver.BaseRequestHandler)

    def finish_request(self, request: object, client_address: object) -> None:
        """Replaces the handler class: the proxy itself serves."""
        assert isinstance(request, socket.socket)
        self._proxy.serve(request)


def _read_head(stream: BinaryIO) -> bytes:
    """Request or status line and header fields with the blank line; b"" at the end of the stream. Skips 1xx."""
    while True:
        lines = []
        while (line := stream.readline()) not in (b"", b"\r\n"):
            lines.append(line)
        head = b"".join(lines)
        if not head.startswith(b"HTTP/1.1 1"):
            return head + b"\r\n" if head and line else b""


def _field(head: bytes, name: str) -> str | None:
    """The value of a header field."""
    found = re.search(rb"\r\n" + name.encode() + rb":[ \t]*([^\r\n]*)", head, re.IGNORECASE)
    return found[1].decode("latin-1").strip() if found else None


def _is_chunked(head: bytes) -> bool:
    return (_field(head, "transfer-encoding") or "").lower() == "chunked"


def _has_body(head: bytes) -> bool:
    return _is_chunked(head) or int(_field(head, "content-length") or 0) > 0


def _payload(head: bytes, stream: BinaryIO, to_the_end: bool = False) -> Iterator[bytes]:
    """The body that follows a head, without its framing, in parts of at most 64 kB; raises OSError if it is cut."""
    if to_the_end:
        while part := stream.read1(_PART_BYTES):  # type: ignore[attr-defined]
            yield part
    elif _is_chunked(head):
        while size := int(stream.readline().split(b";")[0], 16):
            yield from _exactly(size, stream)
            stream.readline()
        while stream.readline() not in (b"", b"\r\n"):  # trailers
            pass
    else:
        yield from _exactly(int(_field(head, "content-length") or 0), stream)


def _exactly(size: int, stream: BinaryIO) -> Iterator[bytes]:
    while size:
        part = stream.read1(min(size, _PART_BYTES))  # type: ignore[attr-defined]
        if not part:
            raise ConnectionError("the body ends early")
        size -= len(part)
        yield part


def _answer(
    head: bytes, line: str, claim: _Claim, server: socket.socket, asked: BinaryIO, answered: BinaryIO
) -> _Reply:
    """Passes a request on and fetches the whole reply, as the fault wants them. Raises _CutOffError."""
    fault = claim.fault
    if claim.action == "status":
        for _ in _payload(head, asked):
            pass
        claim.happened = True
        return _Reply(f"HTTP/1.1 {fault.status} Injected\r\nContent-Length: 0\r\n\r\n".encode(), b"")
    if claim.action == "delay":
        claim.happened = True
        time.sleep(fault.seconds)
    server.sendall(head)
    _send_on(head, _payload(head, asked), server, claim)
    reply = _read_head(answered)
    if not reply:
        raise _CutOffError
    bare = line.startswith("HEAD ") or reply[9:12] in _NO_BODY_STATUS
    lasts = bare or _is_chunked(reply) or _field(reply, "content-length") is not None
    body = b"" if bare else b"".join(_payload(reply, answered, to_the_end=not lasts))
    if claim.action == "lose_reply":
        claim.happened = True
        raise _CutOffError
    lasts = lasts and reply.startswith(b"HTTP/1.1") and (_field(reply, "connection") or "").lower() != "close"
    if bare:
        return _Reply(reply, b"", lasts)
    of_request = claim.action == "cut" and _has_body(head)  # and it was too short for the cut
    return _damaged(reply, body, lasts, _Claim(None) if of_request else claim)


def _damaged(head: bytes, body: bytes, lasts: bool, claim: _Claim) -> _Reply:
    """The reply that the client shall get, its length stated; what flip and truncate do to a download."""
    after, stated, is_cut = claim.fault.after, len(body), False
    if claim.action == "slow":
        claim.happened |= bool(body)
    elif claim.action in ("cut", "flip", "truncate") and len(body) > after and head[9:10] == b"2":
        claim.happened = True
        if claim.action == "flip":
            body = body[:after] + bytes([body[after] ^ 1]) + body[after + 1 :]
        else:
            body, is_cut = body[:after], claim.action == "cut"
            stated = stated if is_cut else after
    head = re.sub(rb"\r\n(content-length|transfer-encoding):[^\r\n]*", b"", head, flags=re.IGNORECASE)
    return _Reply(head[:-2] + b"Content-Length: %d\r\n\r\n" % stated, body, lasts, is_cut)


def _send_on(head: bytes, payload: Iterator[bytes], server: socket.socket, claim: _Claim) -> None:
    """Streams the body of a request to the server, framed as its head says; raises _CutOffError."""
    chunked = _is_chunked(head)
    sent = 0
    for part in payload:
        if claim.action == "cut" and sent + len(part) > claim.fault.after:
            claim.happened = True
            server.sendall(part[: claim.fault.after - sent])
            raise _CutOffError
        for piece in _paced(part, claim):
            claim.happened |= claim.action == "slow"
            server.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        sent += len(part)
    if chunked:
        server.sendall(b"0\r\n\r\n")


def _paced(part: bytes, claim: _Claim) -> Iterator[bytes]:
    """The part at once, or piece by piece at the rate of a slow link."""
    rate = claim.fault.bytes_per_s if claim.action == "slow" else None
    step = len(part) or 1 if rate is None else max(1, rate // _SLOW_PARTS_PER_S)
    for start in range(0, len(part), step):
        piece = part[start : start + step]
        if rate is not None:
            time.sleep(len(piece) / rate)
        yield piece
