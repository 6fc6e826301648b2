"""What the planner makes of a canvas's options, callbacks and places, and what it refuses."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.canvas import Signature

from jobhandle_celery import Job, ValidationError, validation
from jobhandle_celery.broker import plan_canvas as planner
from jobhandle_celery.broker import signatures
from jobhandle_celery.broker.plan_canvas import plan
from jobhandle_celery.broker.plans import Plan, TreeIds
from tests.trees.canvases import BODIES, serialized
from tests.trees.plain_celery import PlainCelery, needs_celery_5_7

UNKNOWN: dict[str, Any] = {"colour": "red"}
QUEUES = ("first", "second")


@pytest.fixture
def celery(redis_url: str) -> Iterator[PlainCelery]:
    plain = PlainCelery(redis_url, BODIES, QUEUES)
    yield plain
    plain.close()


@pytest.fixture
def app() -> Celery:
    return Celery("unused", set_as_current=False)


def note(app: Celery, label: str, **options: Any) -> Any:
    """Return a task whose last argument is its label."""
    return app.signature("trees.note", args=[label], options=options)


def linked(signature: Any, *callbacks: Any) -> Any:
    for callback in callbacks:
        signature.link(callback)
    return signature


Make = Callable[[Callable[..., Any]], Any]

CANVASES: dict[str, Make] = {
    "a chain": lambda s: chain(s("a"), s("b"), s("c")),
    "a group": lambda s: group(s("a"), s("b")),
    "a chord": lambda s: chord([s("a"), s("b")], s("c")),
    "a chord of one": lambda s: chord([s("a")], s("c")),
    "a chord without header": lambda s: chord([], s("c")),
    "a group between tasks": lambda s: chain(s("a"), group(s("b"), s("c")), s("d"), s("e")),
    "a group at the end": lambda s: chain(s("a"), group(s("b"), s("c"))),
    "chains in a header": lambda s: chord([chain(s("a"), s("b")), chain(s("c"), s("d"))], s("e")),
    "a chord in a header": lambda s: chord([s("z"), chord([s("a"), s("b")], s("c"))], s("d")),
    "a chord whose body is a chain": lambda s: chord([s("a"), s("b")], chain(s("c"), s("d"))),
    "that in a chain": lambda s: chain(s("z"), chord([s("a"), s("b")], chain(s("c"), s("d"))), s("e")),
    "a chord after a chord": lambda s: chain(chord([s("a")], s("b")), chord([s("c"), s("d")], s("e"))),
    "a chord with arguments": lambda s: chain(s("z"), chord([s("a"), s("b")], s("c"), args=("x",))),
    "options of a task": lambda s: group(s("a", queue="first", priority=3), s("b", expires=60)),
    "options of a chain": lambda s: chain(s("a"), s("b")).set(queue="first", countdown=0.01),
    "options of a chain that starts with a group": lambda s: chain(group(s("a"), s("b")), s("c"), s("d")).set(
        queue="first", expires=60
    ),
    "options of a group": lambda s: group(s("a"), s("b", queue="second")).set(queue="first", priority=4),
    "options of a group in a chain": lambda s: chain(s("a"), group(s("b"), s("c")).set(queue="first")),
    "options of a group before a task": lambda s: chain(
        s("a"), group(s("b"), s("c")).set(queue="first"), s("d")
    ),
    "options of a group in a group": lambda s: group(s("a"), group(s("b"), s("c")).set(queue="first")),
    "options of a chain in a group": lambda s: group(chain(s("a"), s("b")).set(queue="first"), s("c")),
    "options of a chord": lambda s: chord([s("a"), s("b", queue="second")], s("c", queue="second")).set(
        queue="first", priority=5
    ),
    "a delay of a chord": lambda s: chord([s("a"), s("b")], s("c")).set(countdown=0.01),
    "a delay of a body": lambda s: chord([s("a"), s("b")], s("c", countdown=0.01)),
    "options of a chord with a chain as body": lambda s: chord([s("a"), s("b")], chain(s("c"), s("d"))).set(
        queue="first"
    ),
    "options of a chain and its members": lambda s: chain(s("a", queue="second"), s("b", queue="second")).set(
        queue="first"
    ),
    "a callback": lambda s: linked(s("a"), s("b")),
    "a chain as callback": lambda s: linked(s("a"), chain(s("b"), s("c"))),
    "a group as callback": lambda s: linked(s("a"), group(s("b"), s("c"))),
    "a chord as callback": lambda s: linked(s("a"), chord([s("b"), s("c")], s("d"))),
    "two callbacks": lambda s: linked(s("a"), s("b"), chain(s("c"), s("d"))),
    "a task and a group as callbacks": lambda s: linked(s("a"), s("b"), group(s("c"), s("d"))),
    "a callback of a callback": lambda s: linked(s("a"), linked(s("b"), s("c"))),
    "a callback in a chain": lambda s: chain(linked(s("a"), s("x")), s("b")),
    "a callback of a chain": lambda s: linked(chain(s("a"), s("b")), s("x")),
    "a callback of a chain that ends in a group": lambda s: linked(
        chain(s("a"), group(s("b"), s("c"))), s("x")
    ),
    "a callback of a chain that ends in a chord": lambda s: linked(
        chain(s("a"), chord([s("b"), s("c")], s("d"))), s("x")
    ),
    "a callback of a group": lambda s: linked(group(s("a"), s("b")), s("x")),
    "a callback of a chord": lambda s: linked(chord([s("a"), s("b")], s("c")), s("x")),
    "a callback of a chord whose body is a group": lambda s: linked(
        chord([s("a"), s("b")], group(s("c"), s("d"))), s("x")
    ),
    "a callback option of a group": lambda s: group(linked(s("a"), s("y")), s("b")).set(link=s("x")),
    "a callback option of a chord": lambda s: chord([s("a"), s("b")], linked(s("c"), s("y"))).set(
        link=s("x")
    ),
}


def label(args: Any) -> Any:
    return args[-1]


def of_celery(celery: PlainCelery) -> dict[Any, Any]:
    """Return what Celery's messages say, by their labels."""
    labels = {message.task_id: label(message.args) for message in celery.sent}
    groups = {
        group_id: sorted(str(label(it.args)) for it in celery.sent if it.headers["group"] == group_id)
        for group_id in {message.headers["group"] for message in celery.sent}
    }
    return {
        label(message.args): {
            "queue": message.queue,
            "priority": message.properties.get("priority") or None,
            "delayed": message.headers["eta"] is not None,
            "expires": message.headers["expires"] is not None,
            "root": labels[message.headers["root_id"]],
            "parent": labels.get(message.headers["parent_id"]),
            "group": message.headers["group"] and groups[message.headers["group"]],
            "index": message.headers["group_index"],
        }
        for message in celery.sent
    }


def of_plan(planned: Plan) -> dict[Any, Any]:
    """Return the same of a plan."""
    ids = TreeIds(planned.members, None)
    tasks = [number for number, member in enumerate(planned.members) if member.kind is None]
    labels = {ids.tasks[number]: label(planned.members[number].job.args) for number in tasks}
    headers = {number: ids.headers(number) or {} for number in tasks}
    found = {}
    for number in tasks:
        job, mine = planned.members[number].job, headers[number]
        found[label(job.args)] = {
            "queue": job.queue or "plain",
            "priority": job.priority,
            "delayed": job.scheduled_for is not None,
            "expires": job.expires is not None,
            "root": labels[mine.get("root_id", ids.tasks[number])],
            "parent": labels.get(mine.get("parent_id", "")),
            "group": mine.get("group_id")
            and sorted(
                labels[ids.tasks[other]]
                for other in tasks
                if headers[other].get("group_id") == mine["group_id"]
            ),
            "index": mine.get("group_index"),
        }
    return found


@needs_celery_5_7
@pytest.mark.parametrize("make", CANVASES.values(), ids=CANVASES)
def test_options_and_ids_of_members_are_those_of_celerys_messages(celery: PlainCelery, make: Make) -> None:
    """Queue, priority, times, root, parent, group and index, for members published at once and later."""
    celery.run(make(lambda *args, **options: note(celery.app, *args, **options)))
    made = make(lambda *args, **options: note(celery.app, *args, **options))
    for given in (made, serialized(celery.app, made)):
        assert of_plan(plan([given])) == of_celery(celery)


def test_root_of_canvas_that_a_task_submits_is_that_of_the_task(app: Celery) -> None:
    ids = TreeIds(plan([chain(note(app, "a"), note(app, "b"), note(app, "c"))]).members, "outer")
    assert ids.headers(1) is None  # the routing adds those of the task, as to any job
    assert ids.headers(3) == {"parent_id": ids.tasks[2], "root_id": "outer"}


def test_callback_of_single_task_depends_on_it_without_a_tree(app: Celery) -> None:
    task, callback = plan([linked(note(app, "a"), note(app, "b"))]).members
    assert (task.parent, task.needs, callback.parent, callback.position) == (None, (), None, None)
    assert (callback.needs, callback.when) == (((0, 0),), "finished")


def test_callback_of_member_has_no_position(app: Celery) -> None:
    planned = plan([chain(linked(note(app, "a"), note(app, "b")), note(app, "c"))])
    assert [(member.parent, member.position) for member in planned.members] == [
        (None, None),
        (0, 0),
        (0, None),
        (0, 1),
    ]


def test_generator_of_members_is_consumed_once(app: Celery) -> None:
    made = group(note(app, label) for label in "abc")
    assert len(plan([made]).members) == len(plan([made]).members) == 4


def test_canvas_is_not_changed(app: Celery) -> None:
    made = linked(
        chain(note(app, "a"), group(note(app, "b"), note(app, "c")), note(app, "d")), note(app, "e")
    )
    before = serialized(app, made)
    plan([made])
    assert serialized(app, made) == before


def nested(app: Celery, levels: int) -> Any:
    made: Any = note(app, "a")
    for _ in range(levels):
        made = chord([made], note(app, "b"))
    return made


def test_depth_of_canvas_is_bounded(app: Celery) -> None:
    deepest = planner.MAX_DEPTH // 2
    assert max(member.depth for member in plan([nested(app, deepest)]).members) == planner.MAX_DEPTH
    with pytest.raises(ValidationError, match="50 levels"):
        plan([nested(app, deepest + 1)])


def test_chain_of_callbacks_is_bounded(app: Celery) -> None:
    made = note(app, "a")
    for _ in range(planner.MAX_DEPTH + 1):
        made = linked(note(app, "b"), made)
    with pytest.raises(ValidationError, match="50 levels"):
        plan([made])


def test_number_of_members_is_bounded(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "MAX_MEMBERS", 10)
    assert len(plan([group(note(app, "a") for _ in range(9))]).members) == 10
    with pytest.raises(ValidationError, match="10 members"):
        plan([group(note(app, "a") for _ in range(10))])


@pytest.mark.parametrize("kind", ["chain", "group"])
def test_canvas_that_contains_itself_is_refused(
    app: Celery, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signatures, "MAX_MEMBERS", 10)
    tasks: list[Any] = [note(app, "a")]
    made: Any = {"task": f"celery.{kind}", "kwargs": {"tasks": tasks}, "options": {}, "subtask_type": kind}
    tasks.append(made)
    with pytest.raises(ValidationError, match="10 members"):
        plan([Signature(made, app=app)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: chord([s("a")]), "a chord with a body"),
        (lambda s: chain(chain(), queue="first"), "at least one task"),
        (lambda s: group(s("a"), chain(group(), chain(), queue="first"), s("b")).set(**UNKNOWN), "colour"),
        (lambda s: chain(s("a"), s("b")).set(task_id="mine"), "task_id"),
        (lambda s: chain(s("a"), s("b").set(task_id="mine")), r"in chain\[1\], trees\.note"),
        (
            lambda s: group(s("a"), chord([s("b").set(retries=1)], s("c"))),
            r"in group\[1\], header, group\[0\], trees",
        ),
    ],
)
def test_canvas_that_cannot_be_kept_is_refused(app: Celery, make: Make, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        plan([make(lambda label: note(app, label))])


def test_other_type_of_signature_is_refused(app: Celery) -> None:
    other: Any = {"task": "x", "subtask_type": "mine", "kwargs": {}, "options": {}}
    made = chain(note(app, "a"), other, queue="q")
    with pytest.raises(ValidationError, match="mine"):
        plan([made])


def test_jobs_are_planned_after_what_they_wait_for() -> None:
    last = Job(task="c", after=[middle := Job(task="b", after=[first := Job(task="a"), 7])])
    planned = plan([last, middle, first])
    assert [member.job for member in planned.members] == [first, middle, last]
    assert planned.roots == [2, 1, 0]
    assert [(member.needs, member.after) for member in planned.members] == [
        ((), ()),
        (((0, None),), (7,)),
        (((1, None),), ()),
    ]


def test_job_waits_for_canvas_of_the_same_call(app: Celery) -> None:
    made = group(note(app, "a"), note(app, "b"))
    planned = plan([Job(task="c", after=[made]), made])  # type: ignore[list-item]  # a signature
    assert planned.roots == [3, 0]
    assert planned.members[3].needs == ((0, None),)


def test_job_that_is_not_submitted_with_it_is_refused() -> None:
    with pytest.raises(ValidationError, match="the same objects"):
        plan([Job(task="a"), Job(task="b", after=[Job(task="a")])])


def test_jobs_that_wait_for_each_other_are_refused() -> None:
    needs: list[Any] = []
    first = Job(task="a", after=needs)
    needs.append(Job(task="b", after=[first]))
    with pytest.raises(ValidationError, match="wait for each other"):
        plan([first, needs[0]])


def test_needs_of_each_job_are_read_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order and the number of the jobs: a job may need 100,000 others."""
    needed = [Job(task="tests.add") for _ in range(100)]
    needing = Job(task="tests.add", after=needed)
    after, reads = validation.after, count()
    monkeypatch.setattr(validation, "after", lambda given: (next(reads), after(given))[1])

    assert plan([needing, *needed]).roots == [100, *range(100)]

    assert next(reads) <= 3 * 101
