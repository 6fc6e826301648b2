"""Where the time of one job goes: profiles of processes, and statistics of statements."""

import time

from tests.servers import execute

from ..harness import Harness
from ..marks import VARIABLE
from ..peers import Bare, Ours
from ..peers.celery_app import environment
from ..peers.celery_peers import CeleryPeer
from ..processes import Process
from ..result import Result
from ..stacks import OWNERS, Stacks, record

METHOD = """py-spy takes 200 samples a second of a producer, and of one of the two children of a worker that
runs no-op jobs. A sample counts for the package of its innermost frame, code of the standard library for
its caller. The shares, multiplied by the time per job, give microseconds, waits included.
`pg_stat_statements` counts the statements (on an installed PostgreSQL that has it), `pg_stat_wal` the
writes to the disk."""

STATEMENTS = """
SELECT calls, total_exec_time, regexp_replace(query, '\\s+', ' ', 'g') FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND query NOT LIKE '%%pg_stat%%'
ORDER BY total_exec_time DESC LIMIT 8
"""


def run(harness: Harness) -> Result:
    """Profile a submit and a run, of plain Celery and of this library."""
    result = Result("profile", "Where the time of one job goes", METHOD)
    seconds = harness.amount(7, 3)
    submits: dict[str, tuple[Stacks, float]] = {}
    runs: dict[str, tuple[Stacks, float]] = {}
    for kind in (Bare, Ours):
        with harness.sandbox("profile", server=lambda: harness.servers.counting) as sandbox:
            execute(sandbox.database_url, "CREATE EXTENSION pg_stat_statements")
            peer: CeleryPeer = kind(sandbox)
            peer.prepare()
            harness.progress.show(f"profile a producer of {peer.name}")
            with _Counted(result, peer, "submit") as counted:
                submits[peer.name] = _producer(peer, seconds)
                counted.jobs = submits[peer.name][1] * (seconds + 2) + 20
            peer.purge()
            harness.progress.show(f"profile a worker of {peer.name}")
            jobs = harness.amount(6_000, 600)
            peer.submit_many(range(jobs))
            with _Counted(result, peer, "run") as counted:
                runs[peer.name] = _worker(peer, jobs, seconds)
                counted.jobs = jobs
            peer.close()
    result.tables = {
        "A submit": _owners(submits),
        "A run, in a child": _owners(runs),
        "Functions of this library, submit": _functions(*submits[Ours.name]),
        "Functions of this library, run": _functions(*runs[Ours.name]),
        **result.tables,
    }
    return result


def _producer(peer: CeleryPeer, seconds: float) -> tuple[Stacks, float]:
    """Return the samples of a producer, and the jobs per second that it submitted."""
    go = peer.sandbox.folder / "go"
    variables = {**environment(peer.kind, peer.sandbox), VARIABLE: str(peer.sandbox.marks.path)}
    words = ["benchmarks.producer", str(seconds + 2), str(go)]
    process = Process(words, peer.sandbox.folder / "producer.log", peer.sandbox.reaper, variables)
    try:
        process.wait_for("ready")
        go.touch()
        stacks = record(process.process.pid, seconds, peer.sandbox.folder / "producer.stacks")
        process.wait(60)
        return stacks, float(process.output.split()[-1])
    finally:
        process.end()


def _worker(peer: CeleryPeer, jobs: int, seconds: float) -> tuple[Stacks, float]:
    """Return the samples of a child, and the jobs per second that it ran."""
    try:
        peer.start_workers()
        peer.sandbox.marks.wait_for(max(jobs // 20, 1))
        child = peer.workers[0].family()[1]
        # End before the last job: else an idle child is sampled.
        before, started = peer.sandbox.marks.count(), time.monotonic()
        time.sleep(0.3)
        rate = (peer.sandbox.marks.count() - before) / (time.monotonic() - started)
        enough = min(seconds, 0.7 * (jobs - peer.sandbox.marks.count()) / max(rate, 1))
        before, started = peer.sandbox.marks.count(), time.monotonic()
        stacks = record(child.pid, max(int(enough), 1), peer.sandbox.folder / "worker.stacks")
        rate = (peer.sandbox.marks.count() - before) / (time.monotonic() - started)
        peer.sandbox.marks.wait_for(jobs)
    finally:
        peer.stop_workers()
    return stacks, rate / 2


class _Counted:
    """Adds the database's statistics of a block, per job, to the tables of the result."""

    def __init__(self, result: Result, peer: CeleryPeer, operation: str) -> None:
        self._result = result
        self._peer = peer
        self._operation = operation
        self.jobs = 0.0

    def __enter__(self) -> "_Counted":
        execute(self._peer.sandbox.database_url, "SELECT pg_stat_statements_reset()")
        execute(self._peer.sandbox.database_url, "SELECT pg_stat_reset_shared('wal')")
        return self

    def __exit__(self, *_: object) -> None:
        if not isinstance(self._peer, Ours) or not self.jobs:
            return
        url = self._peer.sandbox.database_url
        rows = [["statement", "calls per job", "µs per call, executing", "µs per job"]]
        for calls, total, query in execute(url, STATEMENTS):
            per_call, per_job = total * 1000 / calls, total * 1000 / self.jobs
            rows.append(
                [f"`{_short(query)}`", f"{calls / self.jobs:.2f}", f"{per_call:.0f}", f"{per_job:.0f}"]
            )
        statement = "SELECT wal_sync, wal_sync_time, wal_write_time, wal_bytes FROM pg_stat_wal"
        [(syncs, sync_time, write_time, size)] = execute(url, statement)
        rows.append(
            [
                f"syncs of the WAL, {float(size) / self.jobs:,.0f} bytes per job",
                f"{syncs / self.jobs:.2f}",
                f"{sync_time * 1000 / max(syncs, 1):.0f}",
                f"{(sync_time + write_time) * 1000 / self.jobs:.0f}",
            ]
        )
        self._result.tables[f"What the database does for one job, {self._operation}"] = rows


def _short(query: str) -> str:
    text = query.replace("`", "'").replace("|", "/")
    return text if len(text) <= 110 else f"{text[:70]} … {text[-37:]}"


def _owners(measured: dict[str, tuple[Stacks, float]]) -> list[list[str]]:
    rows = [["µs per job spent in", *measured]]
    for owner in [*(owner for owner, _ in OWNERS), "other"]:
        cells = [
            f"{stacks.owners[owner] / max(stacks.total, 1) * 1e6 / rate:,.0f}"
            for stacks, rate in measured.values()
        ]
        if any(cell != "0" for cell in cells):
            rows.append([owner, *cells])
    return [*rows, ["all", *(f"{1e6 / rate:,.0f}" for _, rate in measured.values())]]


def _functions(stacks: Stacks, rate: float) -> list[list[str]]:
    heads = ["innermost function of this library", "µs per job, with all that it calls"]
    return [heads] + [
        [function, f"{count / stacks.total * 1e6 / rate:,.0f}"]
        for function, count in stacks.functions.most_common(12)
    ]
