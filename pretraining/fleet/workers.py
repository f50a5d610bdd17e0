"""All workers of an inventory as one: the same question to each, and what they said told apart by worker."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pretraining.fleet.channel import Answer, Request, ask
from pretraining.fleet.inventory import Inventory
from pretraining.fleet.transport import Transport

DONE, TROUBLE = 0, 1
# Beside the time that the action itself needs: gcloud takes seconds to find a worker, ssh less than one.
REACH_S = 30.0


class Workers:
    """Asks all workers at once and prints by worker; it keeps nothing between two questions."""

    def __init__(self, inventory: Inventory, transport: Transport) -> None:
        self.inventory, self.transport = inventory, transport

    def requests(self, action: str, *, each: Sequence[Mapping[str, Any]] = (), **same: Any) -> list[Request]:
        """One request per worker: what is the `same` for all, what differs in `each`."""
        checkouts = self.inventory.checkouts()
        differing = each or [{}] * len(checkouts)
        requests = zip(checkouts, differing, strict=True)
        return [{"action": action, "checkout": checkout, **same, **own} for checkout, own in requests]

    def ask(
        self, action: str, *, timeout_s: float, each: Sequence[Mapping[str, Any]] = (), **same: Any
    ) -> list[Answer]:
        """The answers, in the order of workers. timeout_s: for the action, beside the connection."""
        limit_s = timeout_s + self.inventory.connect_timeout_s + REACH_S
        return ask(self.transport, self.requests(action, each=each, **same), limit_s)

    def name(self, worker: int) -> str:
        """`worker 2 (10.0.0.4)`, in every message."""
        return f"worker {worker} ({self.transport.labels[worker]})"


def print_troubles(workers: Workers, answers: Sequence[Answer]) -> int:
    """Names each worker that did not do what it was asked; returns how many."""
    troubled = [answer for answer in answers if answer.trouble]
    for answer in troubled:
        complain(f"{workers.name(answer.worker)}: {answer.trouble}")
    return len(troubled)


def complain(text: str) -> None:
    """One finding, on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; in a file or a pipe no line is wrapped at 80 characters."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)


def short(sha: str | None) -> str:
    """As git abbreviates."""
    return sha[:12] if sha else "-"
