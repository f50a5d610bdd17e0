"""`octfm fleet logs`: the output of the job on all workers, each line with its worker in front."""

from pretraining.fleet.channel import follow
from pretraining.fleet.workers import DONE, TROUBLE, Workers, complain, print_troubles


def logs(workers: Workers, num_lines: int, *, following: bool) -> int:
    """The last lines of every worker; `following`: and what comes, until Ctrl-C."""
    if following:
        try:
            follow(workers.transport, workers.requests("follow", num_lines=num_lines), _print_line)
        except KeyboardInterrupt:
            return DONE
        return TROUBLE  # all connections have ended, and nobody asked them to
    answers = workers.ask("tail", timeout_s=60, num_lines=num_lines)
    for answer in answers:
        for line in answer.reply.get("lines", []):
            _print_line(answer.worker, line)
    troubles = print_troubles(workers, answers)
    if not troubles and all(answer.reply["job"] is None for answer in answers):
        complain("no job was started yet: octfm fleet start CONFIG")
    return TROUBLE if troubles else DONE


def _print_line(worker: int, line: str) -> None:
    print(f"[worker {worker}] {line}", flush=True)
