"""What the library adds to a worker's memory, and to the time of an import."""

import subprocess
import sys
from collections.abc import Callable

from ..arithmetic import differences
from ..peers import Bare, Ours, Peer, SqlalchemyResults
from ..processes import ROOT
from ..result import Goal, Result, Series
from ..stage import Stage

METHOD = """Memory after a thousand jobs and more, in MiB, of the main process and, on average, of its two
children: PSS, in which a page that several processes share is divided among them; USS, its own pages alone;
RSS, in which shared pages count in full. Imports: the time of that statement in a new process, by turns."""

IMPORTS = {
    "`import celery`": "import celery",
    "`from celery import Celery`": "from celery import Celery",
    "`import jobhandle_celery`": "import jobhandle_celery",
    "`from jobhandle_celery import Jobs`": "from jobhandle_celery import Jobs",
}
Sizes = dict[str, float]


def run(stage: Stage) -> Result:
    """Measure."""
    result = Result("memory", "Memory and imports", METHOD)
    jobs = stage.amount(1_500, 200)
    with stage.peers([Bare, Ours, SqlalchemyResults], result.missing) as peers:
        sizes = stage.contest(
            {name: _sizes(peer, jobs) for name, peer in peers.items()}, 3, quick_rounds=1, warm_up=False
        )
    for who, bound in (("the main process", 25), ("a child", 20)):
        for kind in ("PSS", "RSS"):
            key = f"{who}, {kind}"
            ours, bare = ([each[key] for each in sizes[name]] for name in (Ours.name, Bare.name))
            what = f"memory of {key}, beyond plain Celery"
            result.goals.append(Goal(what, differences(ours, bare), bound, "MiB", at_least=False))
    result.series = [
        Series(f"{key}: {name}", [each[key] for each in rounds], f"MiB ({key})")
        for key in sizes[Bare.name][0]
        for name, rounds in sizes.items()
    ]
    imports = stage.contest({name: _import(statement) for name, statement in IMPORTS.items()}, 15)
    beyond = differences(imports["`import jobhandle_celery`"], imports["`import celery`"])
    what = "time of `import jobhandle_celery` beyond `import celery`"
    result.goals.append(Goal(what, beyond, 150, "ms", at_least=False))
    beyond = differences(
        imports["`from jobhandle_celery import Jobs`"], imports["`from celery import Celery`"]
    )
    what = "time of `from jobhandle_celery import Jobs` beyond `from celery import Celery`"
    result.goals.append(Goal(what, beyond, 0, "ms"))
    result.series += [Series(name, values, "ms") for name, values in imports.items()]
    return result


def _sizes(peer: Peer, jobs: int) -> Callable[[], Sizes]:
    def measure() -> Sizes:
        peer.purge()
        peer.place.marks.clear()
        peer.submit_many(range(jobs))
        try:
            peer.start_workers()
            peer.place.marks.wait_for(jobs)
            family = [process.memory_full_info() for process in peer.workers[0].family()]
        finally:
            peer.stop_workers()
        mebi = 2**20
        main, children = family[0], family[1:]
        return {
            f"{who}, {kind.upper()}": sum(getattr(item, kind) for item in those) / len(those) / mebi
            for who, those in (("the main process", [main]), ("a child", children))
            for kind in ("pss", "uss", "rss")
        }

    return measure


def _import(statement: str) -> Callable[[], float]:
    timed = f"import time; t = time.perf_counter(); {statement}; print((time.perf_counter() - t) * 1000)"

    def measure() -> float:
        asked = [sys.executable, "-c", timed]
        return float(subprocess.run(asked, capture_output=True, text=True, check=True, cwd=ROOT).stdout)

    return measure
