"""Where the time of one job goes: not a contest, but stacks and statements, summed up."""

import time

from tests.servers import execute

from ..marks import VARIABLE
from ..peers import Bare, Ours
from ..peers.celery_app import environment
from ..peers.celery_peers import CeleryPeer
from ..processes import Process
from ..result import Result
from ..stacks import OWNERS, Stacks, record
from ..stage import Stage

METHOD = """py-spy looks 200 times a second at a producer that submits, and at one of the two children of a
worker that runs no-op jobs; each sample counts for the package of the innermost code, standard library code
for its caller. Their shares of the time of a job make microseconds, waits included. Statements are counted by
`pg_stat_statements` (on whichever installed PostgreSQL has it), the disk by `pg_stat_wal`."""

STATEMENTS = """
SELECT calls, total_exec_time, regexp_replace(query, '\\s+', ' ', 'g') FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND query NOT LIKE '%%pg_stat%%'
ORDER BY total_exec_time DESC LIMIT 8
"""


def run(stage: Stage) -> Result:
    """Look."""
    result = Result("profile", "Where the time of one job goes", METHOD)
    seconds = stage.amount(10, 3)
    submits: dict[str, tuple[Stacks, float]] = {}
    runs: dict[str, tuple[Stacks, float]] = {}
    for kind in (Bare, Ours):
        with stage.place("profile", server=lambda: stage.servers.counting) as place:
            execute(place.database_url, "CREATE EXTENSION pg_stat_statements")
            peer: CeleryPeer = kind(place)
            peer.prepare()
            stage.progress.say(f"a producer of {peer.name}")
            with _Counted(result, peer, "submit") as counted:
                submits[peer.name] = _producer(peer, seconds)
                counted.jobs = submits[peer.name][1] * (seconds + 2) + 20
            peer.purge()
            stage.progress.say(f"a worker of {peer.name}")
            jobs = stage.amount(6_000, 600)
            peer.submit_many(range(jobs))
            with _Counted(result, peer, "run") as counted:
                runs[peer.name] = _worker(peer, jobs, seconds)
                counted.jobs = jobs
            peer.close()
    result.tables = {
        "A submit": _owners(submits),
        "A run, in a child": _owners(runs),
        "Where in this library, submit": _verbs(*submits[Ours.name]),
        "Where in this library, run": _verbs(*runs[Ours.name]),
        **result.tables,
    }
    return result


def _producer(peer: CeleryPeer, seconds: float) -> tuple[Stacks, float]:
    """Return the stacks of a producer, and how many jobs a second it submitted."""
    go = peer.place.folder / "go"
    variables = {**environment(peer.kind, peer.place), VARIABLE: str(peer.place.marks.path)}
    words = ["benchmarks.producer", str(seconds + 2), str(go)]
    process = Process(words, peer.place.folder / "producer.log", peer.place.reaper, variables)
    try:
        process.wait_for("ready")
        go.touch()
        stacks = record(process.process.pid, seconds, peer.place.folder / "producer.stacks")
        process.wait(60)
        return stacks, float(process.output.split()[-1])
    finally:
        process.end()


def _worker(peer: CeleryPeer, jobs: int, seconds: float) -> tuple[Stacks, float]:
    """Return the stacks of a child, and how many jobs a second that child ran."""
    try:
        peer.start_workers()
        peer.place.marks.wait_for(max(jobs // 20, 1))
        child = peer.workers[0].family()[1]
        # Not beyond the last job: a child that waits for work would be counted, too.
        before, begun = peer.place.marks.count(), time.monotonic()
        time.sleep(0.3)
        rate = (peer.place.marks.count() - before) / (time.monotonic() - begun)
        enough = min(seconds, 0.7 * (jobs - peer.place.marks.count()) / max(rate, 1))
        before, begun = peer.place.marks.count(), time.monotonic()
        stacks = record(child.pid, max(int(enough), 1), peer.place.folder / "worker.stacks")
        rate = (peer.place.marks.count() - before) / (time.monotonic() - begun)
        peer.place.marks.wait_for(jobs)
    finally:
        peer.stop_workers()
    return stacks, rate / 2


class _Counted:
    """What the database counts meanwhile, put into the result's tables, a job."""

    def __init__(self, result: Result, peer: CeleryPeer, what: str) -> None:
        self._result = result
        self._peer = peer
        self._what = what
        self.jobs = 0.0

    def __enter__(self) -> "_Counted":
        execute(self._peer.place.database_url, "SELECT pg_stat_statements_reset()")
        execute(self._peer.place.database_url, "SELECT pg_stat_reset_shared('wal')")
        return self

    def __exit__(self, *_: object) -> None:
        if not isinstance(self._peer, Ours) or not self.jobs:
            return
        url = self._peer.place.database_url
        rows = [["statement", "calls a job", "µs a call, executing", "µs a job"]]
        for calls, total, query in execute(url, STATEMENTS):
            a_call, a_job = total * 1000 / calls, total * 1000 / self.jobs
            rows.append([f"`{_short(query)}`", f"{calls / self.jobs:.2f}", f"{a_call:.0f}", f"{a_job:.0f}"])
        asked = "SELECT wal_sync, wal_sync_time, wal_write_time, wal_bytes FROM pg_stat_wal"
        [(syncs, sync_time, write_time, size)] = execute(url, asked)
        each = [syncs / self.jobs, sync_time * 1000 / self.jobs, write_time * 1000 / self.jobs]
        rows.append(
            [
                f"the disk: syncs, beside {float(size) / self.jobs:,.0f} bytes of WAL a job",
                f"{each[0]:.2f}",
                f"{sync_time * 1000 / max(syncs, 1):.0f}",
                f"{each[1] + each[2]:.0f}",
            ]
        )
        self._result.tables[f"What the database does for one job, {self._what}"] = rows


def _short(query: str) -> str:
    words = query.replace("`", "'").replace("|", "/")
    return words if len(words) <= 110 else f"{words[:70]} … {words[-37:]}"


def _owners(measured: dict[str, tuple[Stacks, float]]) -> list[list[str]]:
    rows = [["µs a job spent in", *measured]]
    for owner in [*(owner for owner, _ in OWNERS), "other"]:
        cells = [
            f"{stacks.owners[owner] / max(stacks.total, 1) * 1e6 / rate:,.0f}"
            for stacks, rate in measured.values()
        ]
        if any(cell != "0" for cell in cells):
            rows.append([owner, *cells])
    return [*rows, ["all", *(f"{1e6 / rate:,.0f}" for _, rate in measured.values())]]


def _verbs(stacks: Stacks, rate: float) -> list[list[str]]:
    heads = ["innermost verb of this library", "µs a job, what it calls included"]
    return [heads] + [
        [verb, f"{count / stacks.total * 1e6 / rate:,.0f}"] for verb, count in stacks.verbs.most_common(12)
    ]
