"""The time from the submit of a job to the start of its body, on an idle system."""

import random
import time
from collections.abc import Callable

from ..arithmetic import differences, percentile
from ..harness import Harness
from ..marks import clock
from ..peers import Bare, Dramatiq, Ours, Peer, Procrastinate, Rq
from ..result import Goal, Result, Series

METHOD = """The worker of each system is idle. Jobs are submitted one at a time, each 10 to 40 ms after the
end of the one before. The time is from just before the submit to the body's first reading of the clock,
which both processes share. Each value is the percentile of one round."""


def run(harness: Harness) -> Result:
    """Measure the percentiles of each system."""
    result = Result("latency", "From submit to the body", METHOD)
    jobs = harness.amount(30, 10)
    with harness.peers([Bare, Ours, Procrastinate, Rq, Dramatiq], result.missing) as peers:
        for peer in peers.values():
            harness.progress.show(f"start the worker of {peer.name}")
            peer.start_workers()
        for peer in peers.values():  # not all workers log that they are ready
            peer.submit(0)
            peer.sandbox.marks.wait_for(1)
        time.sleep(1)
        measured = harness.measure({name: _latencies(peer, jobs) for name, peer in peers.items()}, 5)
    by_percentile = {
        percent: {
            name: [percentile(latencies, percent) * 1000 for latencies in rounds]
            for name, rounds in measured.items()
        }
        for percent in (50, 95)
    }
    result.goals = [
        Goal(
            f"submit → body starts, p{percent} on an idle system, beyond bare Celery",
            differences(values[Ours.name], values[Bare.name]),
            2.5 if percent == 50 else 0,
            "ms",
            at_least=False,
        )
        for percent, values in by_percentile.items()
    ]
    result.series = [
        Series(f"{name}, p{percent}", values, f"ms (p{percent})")
        for percent, of_peers in by_percentile.items()
        for name, values in of_peers.items()
    ]
    return result


def _latencies(peer: Peer, jobs: int) -> Callable[[], list[float]]:
    def measure() -> list[float]:
        latencies = []
        for number in range(jobs):
            peer.sandbox.marks.clear()
            time.sleep(random.uniform(0.01, 0.04))
            submitted = clock()
            peer.submit(number)
            latencies.append(peer.sandbox.marks.wait_for(1, pause=0.002)[0].started - submitted)
        return latencies

    return measure
