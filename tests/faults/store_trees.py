"""The calls of the store about trees, each with the rows that it needs."""

from collections.abc import Callable
from typing import Any

from jobhandle_celery.schema import clock
from jobhandle_celery.store import NewMember
from tests.faults.store_scenes import Scene, scene
from tests.store.harness import FAILURE, Harness
from tests.store.members import Tree, chain, chord, group, task


def _submit(members: Callable[[Harness], list[NewMember]]) -> Scene:
    return scene(members, lambda store, new: store.trees.submit(new))


def _group_of_an_existing_job(harness: Harness) -> list[NewMember]:
    harness.submit(unique_key="k")
    return group(task(unique_key="k"), task())


def _finished(harness: Harness) -> list[int]:
    tree = Tree(harness, chord(task(), body=task()))
    harness.store.runs.finish(tree.run(2), "1")
    return [tree.ids[2]]


def _header_ended(harness: Harness) -> list[int]:
    tree = Tree(harness, chord(task(), body=task()))
    harness.store.runs.finish(tree.run(2), "1")
    harness.store.settling.settle([tree.ids[2]])
    return [tree.ids[1]]


def _failed(harness: Harness) -> list[int]:
    tree = Tree(harness, [*chain(task(), task()), task(needs=((1, None),), when="failed")])
    harness.store.runs.fail(tree.run(1), FAILURE)
    return [tree.ids[1]]


def _unarmed(harness: Harness) -> list[int]:
    ended, running = harness.submit(), harness.submit()
    harness.store.runs.finish(harness.run(ended), "1")
    members = [
        *(task(after=(need,), when="ended") for need in (ended, running)),
        task(after=(ended,), when="failed"),
        *group(),
    ]
    return Tree(harness, members, armed=False).ids


def _with_a_member_to_adopt(harness: Harness) -> list[int]:
    return Tree(harness, _group_of_an_existing_job(harness), armed=False).ids[:1]


def _left(harness: Harness) -> None:
    _finished(harness)
    harness.write(_unarmed(harness)[0], due_at=clock())
    harness.pass_time(minutes=2)


def _count(call: Any) -> Any:
    return lambda store, given: len(call(store, given))


TREES: dict[str, Scene] = {
    "submit of a tree": _submit(lambda _: chord(task(), task(), body=task())),
    "submit of an empty group": _submit(lambda _: group()),
    "submit of a tree with an existing member": _submit(_group_of_an_existing_job),
    "submit of a job that needs others": _submit(
        lambda harness: [task(after=(harness.submit(), harness.submit()), when="ended")]
    ),
    "settle": scene(_header_ended, _count(lambda store, ids: store.settling.settle(ids))),
    "settle of the last member": scene(_finished, _count(lambda store, ids: store.settling.settle(ids))),
    "settle of a failure": scene(_failed, _count(lambda store, ids: store.settling.settle(ids))),
    "arm": scene(_unarmed, _count(lambda store, ids: store.settling.arm(ids))),
    "arm of a node with an existing member": scene(
        _with_a_member_to_adopt, _count(lambda store, ids: store.settling.arm(ids))
    ),
    "start_ancestors": scene(
        lambda harness: Tree(harness, chord(task(), body=task())).ids[2],
        lambda store, job_id: store.settling.start_ancestors(job_id, "worker w1"),
    ),
    "reserve_unsettled": scene(_left, lambda store, _: sum(map(len, store.settling.reserve_unsettled(10)))),
}
