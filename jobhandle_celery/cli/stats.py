"""``stats`` and ``top``: counts of jobs, throughput, and the workers."""

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
from .context import CommandContext, command
from .describe import progress_cell
from .formatting import format_duration, one_line
from .output.layout import Block, Cell, Line, Table

RUNNING_SHOWN = 10
"""Jobs shown of one worker."""

_UNFINISHED = tuple(status for status in JobStatus if status not in FINAL)
_ENDED = (JobStatus.FINISHED, JobStatus.ERROR, JobStatus.CANCELLED)


@dataclass(frozen=True)
class Stats:
    """Counts and workers at one moment."""

    at: datetime
    window: timedelta
    unfinished: list[Tally]
    ended: list[Tally]
    """Within the window; with ``--all``, since the first job."""
    submitted: dict[str, int]
    workers: list[WorkerSeen]
    all_time: bool = False

    @property
    def tasks(self) -> list[str]:
        """The names of all counted tasks."""
        return sorted({count.task for count in (*self.unfinished, *self.ended)} | set(self.submitted))

    def ended_per_minute(self, task: str) -> float:
        """Return how many jobs of a task ended per minute of the window."""
        ended = sum(count.count for count in self.ended if count.task == task)
        return ended / (self.window.total_seconds() / 60)


def collect(context: CommandContext, window: timedelta, *, all_time: bool = False) -> Stats:
    """Read the counts and the workers."""
    store = context.store
    return Stats(
        at=store.stats.now(),
        window=window,
        unfinished=store.stats.tally(),
        ended=store.stats.tally(FINAL) if all_time else store.stats.ended_within(window),
        submitted={} if all_time else store.stats.submitted_within(window),
        workers=store.stats.workers(),
        all_time=all_time,
    )


_window_option = click.option(
    "--window",
    type=params.DURATION,
    default="1h",
    show_default=True,
    help="Count the jobs that were submitted or ended within this time.",
)
_JSON = '{"at", "window", "unfinished", "tasks": [...], "workers": [...]}'


@command(
    "stats",
    examples={
        "stats": "unfinished jobs, and the last hour",
        "stats --window 1d": "",
        "stats --all": "all ended jobs, too",
        "stats --json | jq .unfinished": "for monitoring",
    },
    exit_codes="0, 2 wrong usage, 5 database unavailable.",
    json=_JSON,
)
@_window_option
@click.option("--all", "all_time", is_flag=True, help="Count all ended jobs; reads a whole index.")
def stats(context: CommandContext, window: timedelta, all_time: bool) -> None:
    """Count jobs by task and status, and list the workers.

    All unfinished jobs are counted. Ended jobs and rates are those of the window.
    """
    _check_window(window)
    current = collect(context, window, all_time=all_time)
    if context.output.json:
        context.output.document(stats_document(current))
    else:
        context.output.show(*stats_blocks(current))


@command(
    "top",
    examples={
        "top": "until Ctrl-C",
        "top --interval 10s --window 10m": "",
        "top --json": "a document for each refresh",
    },
    exit_codes="0 after Ctrl-C, 2 wrong usage, 5 database unavailable at the start.",
    json=f"{_JSON}, one for each refresh",
)
@_window_option
@click.option("--interval", type=params.DURATION, default="2s", show_default=True, help="Refresh interval.")
@click.option("--times", type=click.IntRange(1), help="Exit after so many refreshes.")
def top(context: CommandContext, window: timedelta, interval: timedelta, times: int | None) -> None:
    """Show stats in a live display."""
    _check_window(window)
    pause = max(interval.total_seconds(), 0.2)
    # Ctrl-C is the regular end.
    with contextlib.suppress(KeyboardInterrupt), context.output.live() as display:
        for number in itertools.count():
            if number:
                time.sleep(pause)
            try:
                current = collect(context, window)
            except DatabaseUnavailableError as error:
                if not number:
                    raise
                context.output.note(error)
                continue
            if context.output.json:
                context.output.document(stats_document(current))
            else:
                display.show(stats_blocks(current))
            if number + 1 == times:
                return


def _check_window(window: timedelta) -> None:
    if window < timedelta(seconds=1):
        raise click.UsageError("--window must be at least 1s")


def stats_document(stats: Stats) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "at": json_output.time_value(stats.at),
        "window": None if stats.all_time else stats.window.total_seconds(),
        "unfinished": sum(count.count for count in stats.unfinished),
        "tasks": [_task_document(stats, task) for task in stats.tasks],
        "workers": [json_output.worker_document(worker) for worker in stats.workers],
    }


def _task_document(stats: Stats, task: str) -> dict[str, Any]:
    return {
        "task": task,
        "unfinished": [json_output.count_document(count) for count in stats.unfinished if count.task == task],
        "ended": {str(count.status): count.count for count in stats.ended if count.task == task},
        "submitted": None if stats.all_time else stats.submitted.get(task, 0),
        "ended_per_minute": None if stats.all_time else round(stats.ended_per_minute(task), 3),
    }


def stats_blocks(stats: Stats) -> list[Block]:
    """Return a summary, the counts by task, and the workers."""
    alive = sum(worker.alive for worker in stats.workers)
    unfinished = sum(count.count for count in stats.unfinished)
    ended = sum(count.count for count in stats.ended)
    period = "in all" if stats.all_time else f"in the last {format_duration(stats.window)}"
    summary = Line(
        f"{stats.at:%Y-%m-%d %H:%M:%S}Z: {unfinished:,} unfinished, {ended:,} ended {period}, "
        f"{alive} of {len(stats.workers)} workers alive"
    )
    return [summary, _task_table(stats), _worker_table(stats)]


def _task_table(stats: Stats) -> Table:
    present = {count.status for count in stats.unfinished}
    statuses = [*(status for status in _UNFINISHED if status in present), *_ENDED]
    rates = () if stats.all_time else ("SUBMITTED", "ENDED/MIN")
    columns = [*(status.upper() for status in statuses), *rates, "OLDEST", "TASK"]
    return Table(columns, [_task_row(stats, task, statuses) for task in stats.tasks])


def _task_row(stats: Stats, task: str, statuses: list[JobStatus]) -> list[Cell]:
    counts = {count.status: count.count for count in (*stats.unfinished, *stats.ended) if count.task == task}
    oldest = [count.oldest for count in stats.unfinished if count.task == task and count.oldest is not None]
    rates = (str(stats.submitted.get(task, 0)), f"{stats.ended_per_minute(task):.3g}")
    return [
        *(str(counts.get(status, 0)) for status in statuses),
        *(() if stats.all_time else rates),
        format_duration(stats.at - min(oldest)) if oldest else "-",
        task,
    ]


def _worker_table(stats: Stats) -> Table | Line:
    if not stats.workers:
        return Line("no worker is alive: no job runs, and no worker runs the sweeper")
    rows: list[list[Cell]] = []
    for worker in stats.workers:
        expired = f"expired {format_duration(stats.at - worker.lease_until)} ago"
        cells = [
            worker.name,
            "valid" if worker.alive else expired,
            format_duration(stats.at - worker.started),
            str(len(worker.jobs)),
        ]
        rows.append([*cells, *_running_job(stats, worker, 0)])
        rows += [
            [*[""] * len(cells), *_running_job(stats, worker, index)]
            for index in range(1, min(len(worker.jobs), RUNNING_SHOWN))
        ]
    return Table(("WORKER", "LEASE", "UPTIME", "RUNNING", "JOB", "FOR", "PROGRESS", "TASK AND MESSAGE"), rows)


def _running_job(stats: Stats, worker: WorkerSeen, index: int) -> list[Cell]:
    if index >= len(worker.jobs):
        return ["-", "-", "-", "-"]
    job = worker.jobs[index]
    running_for = format_duration(None if job.started is None else stats.at - job.started)
    return [str(job.id), running_for, progress_cell(job), one_line(f"{job.task} {job.message}")]
