"""`assert_submitted` and `refute_submitted` of chains, groups and chords: their trees are compared."""

from collections.abc import Callable
from typing import Any
from unittest.mock import ANY

import pytest
from celery import chain, chord, group

from jobhandle_celery import ApiUsageError, Job
from jobhandle_celery.testing import JobsKit
from tests.support import failure
from tests.testing import service
from tests.testing.service import add, note, total

CANVASES: dict[str, Callable[[], Any]] = {
    "chain": lambda: chain(add.s(1, 2), add.s(3)),
    "group": lambda: group(add.s(1, 2), add.s(3, y=4)),
    "nested group": lambda: group(add.s(1, 2), group(note.s(1), note.s(2))),
    "chord": lambda: chord([add.s(1, 1)], total.s()),
    "group | body": lambda: group(add.s(1, 1), add.s(2, 2)) | total.s(),
    "chunks": lambda: add.chunks([(1, 2), (3, 4), (5, 6)], 2),
    "chunks | body": lambda: chain(add.chunks([(1, 2), (3, 4)], 1).group(), note.s()),
    "map": lambda: chain(note.map([1, 2]), note.s()),
    "callback": lambda: group(add.s(1, 2).set(link=note.s()), add.s(3, 4)),
    "deep": lambda: chain(
        note.s(1), chord([add.si(1, 2), chain(add.si(1, 2), add.s(3))], total.s()), note.s()
    ),
}
OTHERS: dict[str, list[Callable[[], Any]]] = {
    "chain": [
        lambda: chain(add.s(1, 2), add.s(4)),
        lambda: chain(add.s(1, 2), add.si(3, 3)),
        lambda: chain(add.s(1, 2), add.s(3), add.s(4)),
        lambda: group(add.s(1, 2), add.s(3)),
    ],
    "group": [
        lambda: group(add.s(3, y=4), add.s(1, 2)),
        lambda: group(add.s(1, 2)),
        lambda: group(add.s(1, 2), note.s(3)),
    ],
    "nested group": [lambda: group(add.s(1, 2), group(note.s(2), note.s(1)))],
    "chord": [
        lambda: chord([add.s(1, 1)], note.s()),
        lambda: chord([add.s(1, 1)], total.si()),
        lambda: chord([add.s(1, 2)], total.s()),
    ],
    "group | body": [lambda: chain(group(add.s(1, 1), add.s(2, 2)), total.si([1]))],
    "chunks": [
        lambda: add.chunks([(1, 2), (3, 4), (5, 6)], 3),
        lambda: add.chunks([(1, 2), (3, 4), (5, 7)], 2),
    ],
    "chunks | body": [lambda: chain(add.chunks([(1, 2), (3, 5)], 1).group(), note.s())],
    "map": [lambda: chain(note.map([1, 3]), note.s())],
    "callback": [
        lambda: group(add.s(1, 2), add.s(3, 4)),
        lambda: group(add.s(1, 2), add.s(3, 4).set(link=note.s())),
        lambda: group(add.s(1, 2).set(link=note.si(1)), add.s(3, 4)),
    ],
    "deep": [
        lambda: chain(note.s(1), chord([add.si(1, 2), chain(add.si(1, 2), add.s(4))], total.s()), note.s())
    ],
}


@pytest.mark.parametrize("name", CANVASES)
@pytest.mark.parametrize("has_run", [False, True], ids=["submitted", "has-run"])
def test_canvas_is_found_and_no_other(jobs: JobsKit, name: str, has_run: bool) -> None:
    job_id = jobs.submit(CANVASES[name](), username="ann")
    jobs.submit(note.s(1))
    if has_run:
        jobs.run_jobs()
    assert jobs.assert_submitted(CANVASES[name](), username="ann").id == job_id
    assert f"job {job_id} of ann" in failure(jobs.refute_submitted, CANVASES[name]())
    jobs.refute_submitted(CANVASES[name](), username="bob")
    for other in OTHERS[name]:
        jobs.refute_submitted(other())
        failure(jobs.assert_submitted, other())


def test_canvas_that_a_call_of_celery_has_submitted_is_found(jobs: JobsKit) -> None:
    group(service.durable.s(1), service.durable.s(2)).delay()
    jobs.assert_submitted(group(service.durable.s(1), service.durable.s(2)))
    chain(service.durable.s(), service.durable.s()).delay(3)
    jobs.assert_submitted(chain(service.durable.s(3), service.durable.s()))


def test_canvas_within_another_is_found(jobs: JobsKit) -> None:
    jobs.submit(group(chain(add.s(1, 2), add.s(3)), note.s(1)))
    assert jobs.assert_submitted(chain(add.s(1, 2), add.s(3))).parent_id is not None


def test_arguments_of_a_canvas_may_be_matchers(jobs: JobsKit) -> None:
    jobs.submit(chain(add.s(1, 2), add.s(3)))
    jobs.assert_submitted(chain(add.s(1, ANY), add.s(ANY)))


def test_failed_assertion_of_a_canvas_shows_where_the_nearest_differ(jobs: JobsKit) -> None:
    jobs.submit(note.s(1))
    jobs.submit(chord([add.s(1, 1)], total.s()))
    jobs.submit(chord([add.s(1, 2), add.s(2, 2)], note.s()))
    prefix = "tests.testing.service."
    assert failure(jobs.assert_submitted, chord([add.s(1, 1), add.s(2, 2)], total.s())).splitlines()[:9] == [
        f"no job of celery.chord [header: celery.group; header, group[0]: {prefix}add(1, 1); "
        f"header, group[1]: {prefix}add(2, 2); body: {prefix}total()] was submitted.",
        "10 jobs were submitted, nearest first:",
        "  job 2: celery.chord(), Submitted",
        f"    header, group[1]: nothing, not {prefix}add(2, 2)",
        "  job 6: celery.chord(), Submitted",
        f"    header, group[0]: {prefix}add(1, 2), not {prefix}add(1, 1)",
        f"    body: {prefix}note(), not {prefix}total()",
        "  job 7: celery.group(), Submitted",
        "    task: 'celery.group', not 'celery.chord'",
    ]


def test_failure_of_a_large_canvas_shows_some_of_its_jobs(jobs: JobsKit) -> None:
    jobs.submit(group(note.s(number) for number in range(30)))
    lines = failure(jobs.assert_submitted, group(note.s(-number) for number in range(1, 40))).splitlines()
    assert "and 29 more] was submitted." in lines[0]
    assert lines[13] == "    and 29 more differences"


def test_failed_assertion_of_a_canvas_hides_sensitive_arguments(jobs: JobsKit) -> None:
    hidden: dict[str, Any] = {"sensitive": [0]}
    jobs.submit(chain(note.s("secret").set(**hidden), note.s()))
    message = failure(jobs.assert_submitted, chain(note.s("public"), note.s()))
    assert "secret" not in message
    assert "note('***'), not tests" in message


@pytest.mark.parametrize("task", [chain(add.s(1, 2), add.s(3)), "celery.chord", "celery.group"])
@pytest.mark.parametrize("fields", [{"args": [1]}, {"kwargs": {"x": 1}}])
def test_arguments_of_a_node_are_refused(jobs: JobsKit, task: Any, fields: dict[str, Any]) -> None:
    """No node has any: a refutation would always pass."""
    with pytest.raises(ApiUsageError, match="has no arguments; its tasks have"):
        jobs.refute_submitted(task, **fields)


@pytest.mark.parametrize("canvas", [chain(), chord([note.s(1)]), "celery.chunks", Job(task=note.name)])
def test_what_cannot_be_submitted_is_refused(jobs: JobsKit, canvas: Any) -> None:
    with pytest.raises(ApiUsageError):
        jobs.refute_submitted(canvas)
