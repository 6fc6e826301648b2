"""Memory of a worker's processes, and the time of imports, with and without the library."""

import subprocess
import sys
from collections.abc import Callable

from ..arithmetic import differences
from ..harness import Harness
from ..peers import Bare, Ours, Peer, SqlalchemyResults
from ..processes import ROOT
from ..result import Goal, Result, Series

METHOD = """Memory after 800 jobs, in MiB, of the main process and, on average, of its two children: PSS
divides a page among the processes that share it, USS counts only pages that are not shared, RSS counts
shared pages in full. Imports: the time of the statement in a new process, interleaved."""

IMPORTS = {
    "`import celery`": "import celery",
    "`from celery import Celery`": "from celery import Celery",
    "`import jobhandle_celery`": "import jobhandle_celery",
    "`from jobhandle_celery import Jobs`": "from jobhandle_celery import Jobs",
}
Sizes = dict[str, float]


def run(harness: Harness) -> Result:
    """Measure memory, then imports."""
    result = Result("memory", "Memory and imports", METHOD)
    jobs = harness.amount(800, 200)
    with harness.peers([Bare, Ours, SqlalchemyResults], result.missing) as peers:
        sizes = harness.measure(
            {name: _sizes(peer, jobs) for name, peer in peers.items()}, 2, quick_rounds=1, warm_up=False
        )
    for process, bound in (("the main process", 25), ("a child", 20)):
        for kind in ("PSS", "RSS"):
            key = f"{process}, {kind}"
            ours, bare = ([found[key] for found in sizes[name]] for name in (Ours.name, Bare.name))
            label = f"memory of {key}, beyond plain Celery"
            result.goals.append(Goal(label, differences(ours, bare), bound, "MiB", at_least=False))
    result.series = [
        Series(f"{key}: {name}", [found[key] for found in rounds], f"MiB ({key})")
        for key in sizes[Bare.name][0]
        for name, rounds in sizes.items()
    ]
    imports = harness.measure({name: _import(statement) for name, statement in IMPORTS.items()}, 5)
    beyond = differences(imports["`import jobhandle_celery`"], imports["`import celery`"])
    label = "time of `import jobhandle_celery` beyond `import celery`"
    result.goals.append(Goal(label, beyond, 150, "ms", at_least=False))
    beyond = differences(
        imports["`from jobhandle_celery import Jobs`"], imports["`from celery import Celery`"]
    )
    label = "time of `from jobhandle_celery import Jobs` beyond `from celery import Celery`"
    result.goals.append(Goal(label, beyond, 0, "ms"))
    result.series += [Series(name, values, "ms") for name, values in imports.items()]
    return result


def _sizes(peer: Peer, jobs: int) -> Callable[[], Sizes]:
    def measure() -> Sizes:
        peer.purge()
        peer.sandbox.marks.clear()
        peer.submit_many(range(jobs))
        try:
            peer.start_workers()
            peer.sandbox.marks.wait_for(jobs)
            family = [process.memory_full_info() for process in peer.workers[0].family()]
        finally:
            peer.stop_workers()
        mebi = 2**20
        main, children = family[0], family[1:]
        return {
            f"{process}, {kind.upper()}": sum(getattr(item, kind) for item in items) / len(items) / mebi
            for process, items in (("the main process", [main]), ("a child", children))
            for kind in ("pss", "uss", "rss")
        }

    return measure


def _import(statement: str) -> Callable[[], float]:
    timed = f"import time; t = time.perf_counter(); {statement}; print((time.perf_counter() - t) * 1000)"

    def measure() -> float:
        command = [sys.executable, "-c", timed]
        return float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)

    return measure
