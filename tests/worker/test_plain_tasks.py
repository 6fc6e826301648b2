"""A task called without a job, in a worker of an app with jobs, runs as in plain Celery.

Each scenario is run by both kinds of worker; their results and events are compared.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.result import GroupResult

from tests.apps import lines_of
from tests.support import eventually
from tests.worker.cluster import Cluster, Events, NewCluster

WITH_JOBS, PLAIN = "celery", "plain"


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    cluster = module_cluster(settings={"result_extended": True})
    # One process each: with two, Celery's RETRY may overtake the SUCCESS of the next attempt.
    options: dict[str, Any] = {"concurrency": 1, "arguments": ["-E"], "ready": False}
    cluster.start(queues=[WITH_JOBS], **options)
    # Without a database in its environment the app has no jobs.
    cluster.start(queues=[PLAIN], database_url=None, **options)
    for worker in cluster.workers:
        worker.wait_until_ready()
    return cluster


@pytest.fixture
def events(cluster: Cluster) -> Iterator[Events]:
    with cluster.events() as events:
        yield events


FINAL_EVENTS = {"task-succeeded", "task-failed", "task-revoked", "task-rejected"}

QUIET = {"ignore", "before_start_ignores"}
"""No event tells the end of these."""

SCENARIOS: dict[str, tuple[str, list[Any]]] = {
    "success": ("add", [1, 2]),
    "tracked": ("tracked", []),
    "exception": ("raise_value_error", ["no good"]),
    "unpicklable exception": ("raise_unpicklable", []),
    "too many retries": ("retry_for_ever", ["{path}", True]),
    "too many retries, no reason": ("retry_for_ever", ["{path}", False]),
    "retries": ("retry_times", ["{path}", 2]),
    "autoretry": ("autoretry", ["{path}"]),
    "retry without throw": ("retry_without_throw", ["{path}", "retry"]),
    "ignore": ("ignore", []),
    "reject": ("reject", []),
    "lost process": ("kill_own_process", []),
    "failing hook": ("bad_on_failure", []),
    "hook that ignores": ("before_start_ignores", ["{path}"]),
    "request": ("describe_request", []),
    "types": ("rich_result", []),
    "no JSON": ("unserialisable_result", []),
}


def outcome(cluster: Cluster, events: Events, queue: str, name: str, arguments: list[Any]) -> dict[str, Any]:
    path = cluster.new_file()
    given = [str(path) if argument == "{path}" else argument for argument in arguments]
    task_id = cluster.call(name, *given, queue=queue).id
    quiet = name in ("ignore", "before_start_ignores")
    eventually(
        lambda: "task-started" in events.of(task_id) if quiet else FINAL_EVENTS & {*events.of(task_id)}
    )
    if not quiet:
        eventually(lambda: cluster.state(task_id) not in (None, "STARTED", "RETRY"))
    meta = dict(cluster.meta(task_id) or {})
    for varies in ("date_done", "task_id", "worker", "queue", "traceback", "args", "kwargs", "parent_id"):
        meta.pop(varies, None)
    if isinstance(meta.get("result"), dict) and "exc_message" in meta["result"]:
        meta["result"] = {key: _same(str(meta["result"][key]), task_id, path) for key in meta["result"]}
    return {"meta": meta, "events": Counter(events.of(task_id)), "lines": lines_of(path)}


def _same(text: str, task_id: str, path: Path) -> str:
    return text.replace(task_id, "ID").replace(str(path), "PATH")


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(scenario, marks=pytest.mark.faults) if scenario == "lost process" else scenario
        for scenario in SCENARIOS
    ],
)
def test_plain_task_ends_as_in_plain_celery(cluster: Cluster, events: Events, scenario: str) -> None:
    name, arguments = SCENARIOS[scenario]

    assert outcome(cluster, events, WITH_JOBS, name, arguments) == outcome(
        cluster, events, PLAIN, name, arguments
    )


def settled(result: Any) -> tuple[Any, Any]:
    # The states of the whole family, and the value of the last.
    eventually(result.ready)
    if isinstance(result, GroupResult):
        return [child.state for child in result.children or []], result.get(propagate=False)
    states, last = [], result
    while last is not None:
        states.append(last.state)
        last = last.parent
    return states, repr(result.get(propagate=False))


Canvas = Callable[[Callable[..., Any], str], Any]
"""Makes a canvas of a function that makes signatures, and a file."""

CANVASES: dict[str, tuple[Canvas, tuple[list[str], Any]]] = {
    "chain": (lambda of, _: chain(of("add", 1, 2), of("add", 3), of("add", 4)), (["SUCCESS"] * 3, "10")),
    "chain with a retry": (
        lambda of, path: chain(of("retry_times", path, 2), of("add", 3)),
        (["SUCCESS"] * 2, "5"),
    ),
    "chain that fails": (
        lambda of, _: chain(of("raise_value_error", "broken"), of("add", 3)),
        (["FAILURE"] * 2, "ValueError('broken')"),
    ),
    "group": (lambda of, _: group(of("add", n, 1) for n in range(5)), (["SUCCESS"] * 5, [1, 2, 3, 4, 5])),
}


def signatures(cluster: Cluster) -> Callable[..., Any]:
    return lambda task, *args: cluster.app.signature(f"worker.{task}", args=args, queue=WITH_JOBS)


@pytest.mark.parametrize("name", CANVASES)
def test_canvas_runs_to_its_end(cluster: Cluster, name: str) -> None:
    make, expected = CANVASES[name]

    assert settled(make(signatures(cluster), str(cluster.new_file())).apply_async()) == expected


def test_chord_calls_its_body(cluster: Cluster) -> None:
    of, path = signatures(cluster), str(cluster.new_file())

    result = chord([of("add", 1, 2), of("retry_times", path, 1)], of("same")).apply_async()

    eventually(result.ready)
    assert sorted(result.get()) == [1, 3]


def test_link_and_errback_are_called(cluster: Cluster) -> None:
    of, path = signatures(cluster), cluster.new_file()

    of("add", 1, 2).apply_async(link=of("append", str(path), "link").set(immutable=True))
    of("raise_value_error", "x").apply_async(
        link_error=of("append", str(path), "errback").set(immutable=True)
    )

    eventually(lambda: sorted(lines_of(path)) == ["errback", "link"])
