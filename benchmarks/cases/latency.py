"""How long a job that is submitted to an idle system waits until its body starts."""

import random
import time
from collections.abc import Callable

from ..arithmetic import differences, percentile
from ..marks import clock
from ..peers import Bare, Dramatiq, Ours, Peer, Procrastinate, Rq
from ..result import Goal, Result, Series
from ..stage import Stage

METHOD = """Every contestant has its worker up and idle; one job at a time, the next some 10 to 40 ms after
the former has ended. From just before the submit to the body's first look at the clock, which both processes
share. Each value is the percentile of one round."""


def run(stage: Stage) -> Result:
    """Measure."""
    result = Result("latency", "From submit to the body", METHOD)
    jobs = stage.amount(40, 10)
    with stage.peers([Bare, Ours, Procrastinate, Rq, Dramatiq], result.missing) as peers:
        for peer in peers.values():
            stage.progress.say(f"starts the worker of {peer.name}")
            peer.start_workers()
        for peer in peers.values():  # not all of them say when they are ready
            peer.submit(0)
            peer.place.marks.wait_for(1)
        time.sleep(1)
        measured = stage.contest({name: _latencies(peer, jobs) for name, peer in peers.items()}, 10)
    at = {
        percent: {
            name: [percentile(each, percent) * 1000 for each in all_] for name, all_ in measured.items()
        }
        for percent in (50, 95)
    }
    result.goals = [
        Goal(
            f"submit → body starts, p{percent} on an idle system, beyond bare Celery",
            differences(values[Ours.name], values[Bare.name]),
            5 if percent == 50 else 0,
            "ms",
            at_least=False,
        )
        for percent, values in at.items()
    ]
    result.series = [
        Series(f"{name}, p{percent}", values, f"ms (p{percent})")
        for percent, all_ in at.items()
        for name, values in all_.items()
    ]
    return result


def _latencies(peer: Peer, jobs: int) -> Callable[[], list[float]]:
    def measure() -> list[float]:
        late = []
        for number in range(jobs):
            peer.place.marks.clear()
            time.sleep(random.uniform(0.01, 0.04))
            submitted = clock()
            peer.submit(number)
            late.append(peer.place.marks.wait_for(1, pause=0.002)[0].begun - submitted)
        return late

    return measure
