"""Asks the agent on every worker at the same time: sends its source and a request over stdin, reads one answer.

At most once: gcloud repeats a command whose connection breaks (up to 10 times), but stdin cannot be read twice, so a
repeated command finds nothing to do. Nothing of a request is on a command line: secrets may travel in it.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from typing import Any

from pretraining.fleet import on_worker
from pretraining.fleet.on_worker.agent import MARK
from pretraining.fleet.transport import Transport

# The first line of stdin is this program's source, the second one what it reads. A shell sees no quote inside quotes.
BOOTSTRAP = 'python3 -I -c \'import json, sys; exec(json.loads(sys.stdin.readline() or "0") or "")\''
_LOADER = """
import types
sent = json.loads(sys.stdin.readline())
for name, source in sent["modules"]:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
sys.modules[sent["agent"]].answer(sent["request"])
"""
# Each after those that it imports.
_MODULES = ("processes", "repository", "records", "launching", "ending", "outcome", "health", "agent")

Request = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back from one worker.

    code: of ssh or gcloud here, None when it was given up; sent, received: by our clock.
    """

    worker: int
    label: str
    code: int | None
    reply: Mapping[str, Any]
    stdout: str
    stderr: str
    sent: float
    received: float

    @property
    def trouble(self) -> str | None:
        """Why the worker did not do what it was asked, with its last lines; None when it did."""
        if self.reply:
            return self.reply.get("refused")
        last = "\n".join(f"    {line}" for line in f"{self.stdout}\n{self.stderr}".splitlines()[-5:] if line.strip())
        what = (
            f"no answer within {self.received - self.sent:.0f} s"
            if self.code is None
            else f"not reached, or no answer (exit code {self.code})"
        )
        return f"{what}\n{last}" if last else what


def ask(transport: Transport, requests: Sequence[Request], timeout_s: float) -> list[Answer]:
    """One request per worker, all at once; an answer per worker, in order, whatever happens to the others."""
    children = [_open(transport, worker, stderr=subprocess.PIPE) for worker in range(len(requests))]
    with ThreadPoolExecutor(max_workers=len(requests)) as pool:
        waiting = [
            pool.submit(_answer, children[worker], worker, transport.labels[worker], request, timeout_s)
            for worker, request in enumerate(requests)
        ]
        try:
            return [answer.result() for answer in waiting]
        finally:  # after Ctrl-C the threads end with their children
            for child in children:
                _end(child)


def follow(transport: Transport, requests: Sequence[Request], on_line: Callable[[int, str], None]) -> None:
    """Gives each line of each worker to `on_line`, until all connections have ended or KeyboardInterrupt.

    Lines of one worker come in order, and `on_line` is called by one thread at a time. The end of stdin, which comes
    with that of ssh or gcloud, ends the agents.
    """
    children = [_open(transport, worker, stderr=subprocess.STDOUT) for worker in range(len(requests))]
    interrupted, one_line = threading.Event(), threading.Lock()

    def read(worker: int) -> None:
        child = children[worker]
        assert child.stdin is not None
        assert child.stdout is not None
        with suppress(BrokenPipeError):
            child.stdin.write(_sent(requests[worker]))
            child.stdin.flush()
        for line in child.stdout:
            with one_line:
                on_line(worker, line.decode(errors="replace").rstrip("\n"))
        code = child.wait()
        if not interrupted.is_set():
            with one_line:
                on_line(worker, f"(the connection has ended, exit code {code})")

    with ThreadPoolExecutor(max_workers=len(requests)) as pool:
        reading = [pool.submit(read, worker) for worker in range(len(requests))]
        try:
            for one in reading:
                one.result()
        finally:
            interrupted.set()
            for child in children:
                _end(child)


def _answer(child: subprocess.Popen[bytes], worker: int, label: str, request: Request, timeout_s: float) -> Answer:
    sent = time.time()
    code: int | None = None
    try:
        stdout, stderr = child.communicate(_sent(request), timeout=timeout_s)
        code = child.returncode
    except subprocess.TimeoutExpired:
        _end(child)
        stdout, stderr = child.communicate()
    received = time.time()
    lines = stdout.decode(errors="replace").splitlines()
    replies = [json.loads(line[len(MARK) :]) for line in lines if line.startswith(MARK)]
    return Answer(
        worker=worker,
        label=label,
        code=code,
        reply=replies[-1] if replies else {},
        stdout="\n".join(line for line in lines if not line.startswith(MARK)),
        stderr=stderr.decode(errors="replace"),
        sent=sent,
        received=received,
    )


def _open(transport: Transport, worker: int, *, stderr: int) -> subprocess.Popen[bytes]:
    """A session of its own: Ctrl-C reaches us, not ssh, and giving up ends gcloud together with the ssh below it."""
    command = transport.command_line(worker, BOOTSTRAP)
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)


def _sent(request: Request) -> bytes:
    package = on_worker.__name__
    files = resources.files(on_worker)
    parents = [".".join(package.split(".")[:depth]) for depth in range(1, package.count(".") + 2)]
    modules = [(name, "") for name in parents]
    modules += [(f"{package}.{name}", (files / f"{name}.py").read_text()) for name in _MODULES]
    sent = {"modules": modules, "agent": f"{package}.agent", "request": request}
    return f"{json.dumps(_LOADER)}\n{json.dumps(sent)}\n".encode()
