"""``stats`` and ``top``: what there is to do, how fast it is done, and by whom. May import desk and below."""

import contextlib
import itertools
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import click

from ..errors import DatabaseUnavailableError
from ..status import FINAL, JobStatus
from ..store import Tally, WorkerSeen
from . import json_output, params
from .context import Desk, verb
from .formatting import one_line, progress, span
from .output.layout import Bar, Block, Cell, Line, Table

WINDOW = timedelta(hours=1)
"""How far back ends and submits are counted, unless told otherwise."""

RUNNING_SHOWN = 10
"""Jobs of one worker that a terminal shows."""


@dataclass(frozen=True)
class Stats:
    """One look at everything."""

    at: datetime
    window: timedelta
    unfinished: list[Tally]
    ended: list[Tally]
    """Within the window, or, if everything was asked for, ever."""
    submitted: dict[str, int]
    workers: list[WorkerSeen]
    everything: bool = False

    @property
    def tasks(self) -> list[str]:
        """The tasks that there is something to say of."""
        return sorted({one.task for one in (*self.unfinished, *self.ended)} | set(self.submitted))

    def rate(self, task: str) -> float:
        """Return how many jobs of a task have ended in a minute of the window."""
        ended = sum(one.count for one in self.ended if one.task == task)
        return ended / (self.window.total_seconds() / 60)


def look(desk: Desk, window: timedelta, *, everything: bool = False) -> Stats:
    """Ask for everything that `Stats` holds."""
    store = desk.store
    return Stats(
        at=store.now(),
        window=window,
        unfinished=store.tally(),
        ended=store.tally(FINAL) if everything else store.ended_within(window),
        submitted={} if everything else store.submitted_within(window),
        workers=store.workers(),
        everything=everything,
    )


_options = click.option(
    "--window",
    type=params.DURATION,
    default="1h",
    show_default=True,
    help="Count what was submitted and what ended within that time.",
)


@verb(
    "stats",
    examples={
        "stats": "what is unfinished now, and the last hour",
        "stats --window 1d": "",
        "stats --all": "all that ever ended, too",
        "stats --json | jq .unfinished": "for a monitor",
    },
    exits="0, 2 wrong input, 5 database away.",
)
@_options
@click.option(
    "--all", "everything", is_flag=True, help="Count all ended jobs there are: reads a whole index."
)
def stats(desk: Desk, window: timedelta, everything: bool) -> None:
    """Count jobs by task and status, and say what the workers do.

    Unfinished jobs are counted to the last one. Ended ones, and so the rates, are those of the window.
    """
    _check(window)
    seen = look(desk, window, everything=everything)
    if desk.out.json:
        desk.out.document(document(seen))
    else:
        desk.out.show(*blocks(seen))


@verb(
    "top",
    examples={
        "top": "until Ctrl-C",
        "top --interval 10s --window 10m": "",
        "top --json": "a document each time",
    },
    exits="0 after Ctrl-C, 2 wrong input, 5 database away at the beginning.",
)
@_options
@click.option("--interval", type=params.DURATION, default="2s", show_default=True, help="Between two looks.")
@click.option("--times", type=click.IntRange(1), help="End after so many looks.")
def top(desk: Desk, window: timedelta, interval: timedelta, times: int | None) -> None:
    """Show stats again and again, on a live screen."""
    _check(window)
    pause = max(interval.total_seconds(), 0.2)
    # Ctrl-C is how it ends, so it is no interruption.
    with contextlib.suppress(KeyboardInterrupt), desk.out.live() as screen:
        for number in itertools.count():
            if number:
                time.sleep(pause)
            try:
                seen = look(desk, window)
            except DatabaseUnavailableError as error:
                if not number:
                    raise
                desk.out.note(str(error))
                continue
            if desk.out.json:
                desk.out.document(document(seen))
            else:
                screen.show(blocks(seen))
            if number + 1 == times:
                return


def _check(window: timedelta) -> None:
    if window < timedelta(seconds=1):
        raise click.UsageError("--window: at least 1s")


def document(seen: Stats) -> dict[str, Any]:
    """Return the JSON of a look."""
    return {
        "at": json_output.moment(seen.at),
        "window": None if seen.everything else seen.window.total_seconds(),
        "unfinished": sum(one.count for one in seen.unfinished),
        "tasks": [
            {
                "task": task,
                "unfinished": [json_output.tally(one) for one in seen.unfinished if one.task == task],
                "ended": {str(one.status): one.count for one in seen.ended if one.task == task},
                "submitted": None if seen.everything else seen.submitted.get(task, 0),
                "ended_per_minute": None if seen.everything else round(seen.rate(task), 3),
            }
            for task in seen.tasks
        ],
        "workers": [json_output.worker(one) for one in seen.workers],
    }


def blocks(seen: Stats) -> list[Block]:
    """Return the tables of a look."""
    alive = sum(one.alive for one in seen.workers)
    unfinished = sum(one.count for one in seen.unfinished)
    since = "ever" if seen.everything else f"in the last {span(seen.window)}"
    ended = sum(one.count for one in seen.ended)
    head = Line(
        f"{seen.at:%Y-%m-%d %H:%M:%S}Z: {unfinished:,} unfinished, {ended:,} ended {since}, "
        f"{alive} of {len(seen.workers)} workers alive"
    )
    return [head, _tasks(seen), _workers(seen)]


_UNFINISHED = tuple(status for status in JobStatus if status not in FINAL)


def _tasks(seen: Stats) -> Table:
    statuses = [status for status in _UNFINISHED if any(one.status is status for one in seen.unfinished)]
    columns = [
        *(status.upper() for status in (*statuses, JobStatus.FINISHED, JobStatus.ERROR, JobStatus.CANCELLED)),
        *(() if seen.everything else ("NEW", "ENDED/MIN")),
        "OLDEST",
        "TASK",
    ]
    return Table(columns, [_task(seen, task, statuses) for task in seen.tasks])


def _task(seen: Stats, task: str, statuses: list[JobStatus]) -> list[Cell]:
    counts = {one.status: one.count for one in (*seen.unfinished, *seen.ended) if one.task == task}
    oldest = [one.oldest for one in seen.unfinished if one.task == task and one.oldest is not None]
    shown = (*statuses, JobStatus.FINISHED, JobStatus.ERROR, JobStatus.CANCELLED)
    rates = () if seen.everything else (str(seen.submitted.get(task, 0)), f"{seen.rate(task):.3g}")
    return [
        *(str(counts.get(status, 0)) for status in shown),
        *rates,
        span(seen.at - min(oldest)) if oldest else "-",
        task,
    ]


def _workers(seen: Stats) -> Table | Line:
    if not seen.workers:
        return Line("no worker is alive: nothing runs, and nothing is swept")
    rows: list[list[Cell]] = []
    for one in seen.workers:
        lease = "alive" if one.alive else f"lost {span(seen.at - one.lease_until)} ago"
        up, running = span(seen.at - one.started), str(len(one.jobs))
        rows += [[one.name, lease, up, running, *_job(seen, one, 0)]]
        rows += [
            ["", "", "", "", *_job(seen, one, place)] for place in range(1, min(len(one.jobs), RUNNING_SHOWN))
        ]
    return Table(("WORKER", "LEASE", "UP", "RUNS", "JOB", "FOR", "PROGRESS", "TASK AND MESSAGE"), rows)


def _job(seen: Stats, one: WorkerSeen, place: int) -> list[Cell]:
    if place >= len(one.jobs):
        return ["-", "-", "-", "-"]
    job = one.jobs[place]
    far = Bar(progress(job.progress), job.progress.fraction if job.progress else None)
    since = span(None if job.started is None else seen.at - job.started)
    return [str(job.id), since, far, one_line(f"{job.task} {job.message}")]
