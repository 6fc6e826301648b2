"""Celery's signals and events of a job are those of a plain task of the same life, but for a known table.

Each life is led by a plain task in a worker without jobs, and by a job; the differences are listed in
docs/reference/signals-and-events.md. Set JOBHANDLE_WRITE_DOCS to write the table anew.
"""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import celery
import pytest

from jobhandle_celery import JobStatus
from tests.apps import lines_of
from tests.servers import execute
from tests.support import eventually
from tests.worker.cluster import Cluster, Events, NewCluster

pytestmark = pytest.mark.faults

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "signals-and-events.md"
JOB, PLAIN = "celery", "plain"
FINAL = {"task-succeeded", "task-failed", "task-revoked", "task-rejected"}
NEW = celery.VERSION[:2] >= (5, 7)
"""The page is about Celery 5.7; 5.6 has fewer signals of time limits and rejections."""


@dataclass
class Side:
    """A worker, and the life of a task on it."""

    cluster: Cluster
    events: Events
    queue: str
    record: Path
    jobs: dict[str, Any] = field(default_factory=dict)
    """Handles by the task ids of their jobs."""

    def send(self, task: str, *args: Any, **options: Any) -> str:
        queue = options.pop("queue", self.queue)
        if self.queue == PLAIN:
            options.pop("max_attempts", None)
            return str(self.cluster.call(task, *args, queue=queue, **options).id)
        handle = self.cluster.submit(task, *args, queue=queue, **options)
        task_id = str(handle.get_job().task_id)
        self.jobs[task_id] = handle
        return task_id

    def park(self, task: str, *args: Any, **options: Any) -> tuple[str, bytes]:
        """Take a message from a parked queue."""
        parked = f"parked-{self.queue}"
        task_id = self.send(task, *args, queue=parked, **options)
        message = self.cluster.redis.lpop(parked)
        assert isinstance(message, bytes)
        return task_id, message

    def begun(self, task: str, *args: Any, **options: Any) -> str:
        path = self.cluster.new_file()
        task_id = self.send(task, str(path), *args, **options)
        eventually(lambda: lines_of(path) == ["begun"])
        return task_id

    def cancel(self, task_id: str, *, terminate: bool = False) -> None:
        if self.queue == PLAIN:
            assert self.cluster.app.control.revoke(
                task_id, terminate=terminate, reply=True, timeout=10, limit=2
            )
        else:
            self.jobs[task_id].cancel_job(terminate=terminate)

    def signals(self, task_id: str) -> list[tuple[str, str]]:
        """Return where each signal was sent, and which it is."""
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return [(where, name) for of, where, name in map(json.loads, lines) if of == task_id]


Life = Callable[[Side], str]


def _cancelled_before(side: Side) -> str:
    task_id, message = side.park("add", 1, 2)
    side.cancel(task_id)
    side.cluster.deliver(message, side.queue)
    return task_id


def _revoked_before(side: Side) -> str:
    task_id, message = side.park("add", 1, 2)
    side.cluster.app.control.revoke(task_id, reply=True, timeout=10, limit=2)
    side.cluster.deliver(message, side.queue)
    return task_id


def _expired(side: Side) -> str:
    soon = time.time() + 0.01
    expires: Any = datetime.fromtimestamp(soon, UTC) if side.queue == PLAIN else timedelta(hours=1)
    task_id, message = side.park("add", 1, 2, expires=expires)
    if side.queue == PLAIN:
        eventually(lambda: time.time() > soon)
    else:
        past = "expires = clock_timestamp() - interval '1 hour'"
        execute(side.cluster.database_url, f"UPDATE jobhandle_job SET {past} WHERE task_id = '{task_id}'")
    side.cluster.deliver(message, side.queue)
    return task_id


def _terminated(side: Side) -> str:
    task_id = side.begun("deaf", 60)
    side.cancel(task_id, terminate=True)
    return task_id


def _stopped(side: Side) -> str:
    if side.queue == PLAIN:  # the nearest plain case: a body that ends itself, and records nothing
        return side.send("ignore")
    task_id = side.begun("attentive", 60)
    side.cancel(task_id)
    return task_id


def _superseded(side: Side) -> str:
    sign = side.cluster.new_file()
    task_id = side.begun("until_there", str(sign))
    if side.queue != PLAIN:
        assert side.jobs[task_id].set_status("Error") is JobStatus.RUNNING
    sign.touch()
    return task_id


def _duplicate(side: Side) -> str:
    task_id, message = side.park("add", 1, 2)
    side.cluster.deliver(message, side.queue)
    eventually(lambda: FINAL & {*side.events.of(task_id)})
    side.cluster.deliver(message, side.queue)
    return task_id


LIVES: dict[str, Life] = {
    "success": lambda side: side.send("add", 1, 2),
    "failure": lambda side: side.send("raise_value_error", "no good"),
    "retry, then success": lambda side: side.send("retry_times", str(side.cluster.new_file()), 1),
    "`Ignore`": lambda side: side.send("ignore"),
    "`Reject`": lambda side: side.send("reject"),
    "soft time limit": lambda side: side.begun("deaf", 30, soft_time_limit=1),
    "hard time limit": lambda side: side.begun("deaf", 30, time_limit=1),
    "killed pool process": lambda side: side.send("kill_own_process"),
    "killed pool process, attempts left": lambda side: side.send("kill_own_process", max_attempts=2),
    "cancelled before its start": _cancelled_before,
    "revoked by Celery before its start": _revoked_before,
    "expired before its start": _expired,
    "cancelled with `terminate` while it runs": _terminated,
    "stopped on request (plain: `Ignore`)": _stopped,
    "delivered again after its end": _duplicate,
    "superseded while it runs": _superseded,
}
QUIET = {"`Ignore`", "`Reject`" if not NEW else ""}
"""No event tells the end of these."""


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    # A superseded body is not terminated before it has ended by itself.
    cluster = module_cluster(settings={"jobhandle_publish_grace": 60})
    for queue in (JOB, PLAIN):
        options: dict[str, Any] = {} if queue == JOB else {"database_url": None}
        cluster.start(
            "tests.worker.recorded:app",
            queues=[queue],
            concurrency=1,
            arguments=["-E"],
            ready=False,
            environment={"JOBHANDLE_TEST_RECORD": str(cluster.folder / queue)},
            **options,
        )
    for worker in cluster.workers:
        worker.wait_until_ready()
    return cluster


@pytest.fixture
def events(cluster: Cluster) -> Iterator[Events]:
    with cluster.events() as events:
        yield events


def lead(side: Side, name: str) -> tuple[list[str], list[str]]:
    """Run a life to its end; return its signals and events, as the page has them."""
    task_id = LIVES[name](side)
    if side.queue == JOB:
        side.jobs[task_id].wait(30)
    if name not in QUIET and not (name.startswith("stopped") and side.queue == PLAIN):
        eventually(lambda: FINAL & {*side.events.of(task_id)}, message=f"{name}: no end")
    side.cluster.fence(side.queue)
    sent = side.signals(task_id)
    in_main = Counter(_short(signal) for where, signal in sent if where == "main")
    main = ", ".join(_times(signal, count) for signal, count in sorted(in_main.items()))
    child = ", ".join(_short(signal) for where, signal in sent if where == "child")
    signals = [f"{where}: {words}" for where, words in (("main", main), ("child", child)) if words]
    events = [event.removeprefix("task-") for event in side.events.of(task_id)]
    return signals, [", ".join(sorted(events) if name.startswith("retry") else events)]


def _short(signal: str) -> str:
    return re.sub(r"^task_", "", signal).replace(" None", "")


def _times(word: str, count: int) -> str:
    return word if count == 1 else f"{word} ×{count}"


def row(name: str, plain: tuple[list[str], list[str]], job: tuple[list[str], list[str]]) -> str:
    cells = [name]
    for of_plain, of_job in zip(plain, job, strict=True):
        job_cell = "the same" if of_job == of_plain else "; ".join(of_job) or "none"
        cells += ["; ".join(of_plain), job_cell]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("name", LIVES)
def test_signals_and_events_match_the_documented_table(cluster: Cluster, events: Events, name: str) -> None:
    """Signal and event receivers see a job as they see a task (faults 17, 20)."""
    led = [lead(Side(cluster, events, queue, cluster.folder / queue), name) for queue in (PLAIN, JOB)]
    found = row(name, led[0], led[1])
    if os.environ.get("JOBHANDLE_WRITE_DOCS"):
        text = PAGE.read_text()
        old = re.compile(rf"^\| {re.escape(name)} \|.*$", re.MULTILINE)
        PAGE.write_text(old.sub(lambda _: found, text) if old.search(text) else text + found + "\n")
    [line] = re.findall(rf"^\| {re.escape(name)} \|.*$", PAGE.read_text(), re.MULTILINE)
    if NEW:
        assert line == found
    elif line.count("| the same |") == 2:
        assert led[0] == led[1]


def test_every_row_of_the_table_is_tested() -> None:
    rows = re.findall(r"^\| ([^|]+?) \|", PAGE.read_text(), re.MULTILINE)
    assert [name for name in rows if name not in ("life", "---")] == list(LIVES)
