"""Trees for the tests of the store, as lists of rows: what a canvas becomes."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jobhandle_celery.store import NewMember, Run, SubmitResult
from jobhandle_celery.store.settling import Settling
from jobhandle_celery.store.trees import Trees
from tests.store.harness import Harness, new_job


def task(**given: Any) -> NewMember:
    """A task; what is no column of a job is one of a member."""
    own = {name: given.pop(name) for name in list(given) if name in NewMember.__dataclass_fields__}
    return NewMember(new_job(**given), **own)


def node(kind: str, **given: Any) -> NewMember:
    return NewMember(new_job(task=f"celery.{kind}"), kind=kind, **given)


def chain(*tasks: NewMember) -> list[NewMember]:
    """A chain, each of whose tasks needs the result of the one before."""
    members = [node("chain")]
    for position, new in enumerate(tasks):
        needs = ((position, 0),) if position else ()
        when = "finished" if position else None
        members.append(replace(new, parent=0, position=position, needs=needs, when=when))
    return members


def group(*tasks: NewMember) -> list[NewMember]:
    return [node("group"), *(replace(new, parent=0, position=at) for at, new in enumerate(tasks))]


def chord(*header: NewMember, body: NewMember) -> list[NewMember]:
    """A chord: its header, a group, and its body."""
    members = [node("chord"), node("group", parent=0, position=0)]
    members += [replace(new, parent=1, position=at) for at, new in enumerate(header)]
    return [*members, replace(body, parent=0, position=1, needs=((1, 0),), when="finished")]


class _Never(Settling):
    """Settles nothing, as a process that has died."""

    def arm(self, job_ids: Sequence[int]) -> list[int]:
        return []


class Tree:
    """A tree on a harness, by the positions of its rows in the list."""

    def __init__(self, harness: Harness, members: Sequence[NewMember], *, armed: bool = True) -> None:
        """Submit it; without `armed`, as by a process that dies after the commit."""
        self.harness = harness
        trees = harness.store.trees if armed else Trees(harness.database, _Never(harness.database))
        self.submitted: list[SubmitResult] = trees.submit(members)
        self.ids = [row.job_id for row in self.submitted]

    def run(self, number: int) -> Run:
        """Claim a row."""
        return self.harness.run(self.ids[number])

    def finish(self, number: int) -> list[int]:
        """Run a row to its end, and settle all that follows; return what became ready."""
        assert self.harness.store.runs.finish(self.run(number), "1")
        return settle_all(self.harness, self.ids[number])

    def statuses(self) -> list[str]:
        return [str(self.harness.status(job_id)) for job_id in self.ids]


def settle_all(harness: Harness, *job_ids: int) -> list[int]:
    """Settle these jobs, and what ends thereby, as the runtime does; return what became ready."""
    unsettled, ready = list(job_ids), list[int]()
    harness.database.on_unsettled = unsettled.extend
    try:
        while unsettled:
            ready += [message.job_id for message in harness.store.settling.settle([unsettled.pop(0)])]
    finally:
        harness.database.on_unsettled = None
    return ready


def nested() -> list[NewMember]:
    """chain(group(chain(3, 4), 5), 6), by the numbers of the rows."""
    return [
        node("chain"),
        node("group", parent=0, position=0),
        node("chain", parent=1, position=0),
        task(parent=2, position=0),
        task(parent=2, position=1, needs=((3, 0),), when="finished"),
        task(parent=1, position=1),
        task(parent=0, position=1, needs=((1, 0),), when="finished"),
    ]


def cancel(harness: Harness, job_id: int, *, terminate: bool = False) -> str | None:
    return harness.store.control.cancel(job_id, None, terminate=terminate)


def resubmit(harness: Harness, job_id: int) -> list[int] | None:
    return harness.store.control.resubmit(job_id, str(uuid.uuid4()), None)
