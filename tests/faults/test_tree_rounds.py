"""Submits that need existing jobs, and resubmits of a root: against an end or a settle, at any statement."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from jobhandle_celery.errors import InvalidTransitionError
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import NewMember, Run
from tests.faults.tree_process import TreeProcess
from tests.rng import stretched
from tests.store.members import Tree, chain, chord, group, task
from tests.store.racing import in_the_middle, steps

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

CANCELLED, ERROR, FINISHED = JobStatus.CANCELLED, JobStatus.ERROR, JobStatus.FINISHED


def run_to_the_end(process: TreeProcess, ids: Sequence[int]) -> None:
    """Run whatever can start, and settle what a sweep would, until every row is final."""
    for _ in range(2 * len(ids)):
        process.settle_what_is_left()
        for job_id in ids:
            row = process.harness.row(job_id)
            if row["kind"] is None and not row["status_id"].final and (run := process.claim(job_id)):
                process.finish(run)
        if all(process.harness.status(job_id).final for job_id in ids):
            break
    assert process.unsettled() == 0


def unique() -> str:
    return str(uuid.uuid4())


def with_existing_member(_: int, key: str) -> list[NewMember]:
    return chain(task(), task(unique_key=key), task())


def with_existing_need(needed: int, _: str) -> list[NewMember]:
    return [task(after=(needed,))]


def with_existing_failure(needed: int, _: str) -> list[NewMember]:
    return [task(after=(needed,), when="failed")]


@pytest.mark.parametrize("slow", ["submit", "end"])
@pytest.mark.parametrize("how", ["finish", "fail"])
@pytest.mark.parametrize("shape", [with_existing_member, with_existing_need, with_existing_failure])
def test_submit_meets_the_end_of_a_job_that_it_needs(
    tree_process: TreeProcess, shape: Callable[[int, str], list[NewMember]], how: str, slow: str
) -> None:
    process = tree_process

    def prepared() -> tuple[int, list[int], Callable[[], Any], Callable[[], Any]]:
        key, ids = unique(), list[int]()
        existing = process.harness.submit(unique_key=key)
        run = process.claim(existing)
        assert run is not None

        def submit() -> None:
            ids.extend(Tree(process.harness, shape(existing, key)).ids)

        both = (submit, lambda: getattr(process, how)(run))
        return existing, ids, *(both if slow == "submit" else both[::-1])

    *_, alone, _ = prepared()
    count = steps(process.harness, alone)
    for number in range(1, count + 1):
        process.ready.clear()
        existing, ids, first, second = prepared()
        in_the_middle(process.harness, number, first, second)
        run_to_the_end(process, ids)
        details = (
            f"{slow} was stopped at statement {number} of {count}: {[process.harness.row(i) for i in ids]}"
        )
        statuses = [process.harness.status(job_id) for job_id in ids]
        ran = {job_id: process.harness.row(job_id)["attempt"] for job_id in ids}
        met = (how == "finish") != (shape is with_existing_failure)
        if shape is not with_existing_member:
            assert statuses == [FINISHED if met else CANCELLED], details
        elif existing in ids and not met:
            assert statuses == [ERROR, FINISHED, ERROR, CANCELLED], details
        else:
            assert statuses == [FINISHED] * 4, details
        assert all(times <= 1 for times in ran.values()), details
        assert sorted(process.ready) == sorted(set(process.ready)), details


SHAPES: dict[str, Callable[[], list[NewMember]]] = {
    "chain": lambda: chain(task(), task()),
    "group": lambda: group(task(), task()),
    "chord": lambda: chord(task(), task(), body=task()),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ends", ["die", "settle"])
def test_resubmit_meets_a_settle_of_the_former_round(
    tree_process: TreeProcess, shape: str, ends: str
) -> None:
    """Mutant 27: a settle of the former round must not clear the flag of the next one's end.

    A member fails, the last to end; its settle is stopped at each statement. Meanwhile the root is
    resubmitted, if it has ended by then, and the member ends again, in a process that dies or settles.
    """
    process = tree_process

    def prepared() -> tuple[Tree, int, Callable[[], Any]]:
        tree = Tree(process.harness, SHAPES[shape]())
        first = next(job_id for job_id in tree.ids if process.harness.row(job_id)["kind"] is None)
        for job_id in tree.ids:
            row = process.harness.row(job_id)
            if job_id != first and row["kind"] is None and not row["blocked"]:
                run = process.claim(job_id)
                assert run is not None
                process.finish(run)
        run = process.claim(first)
        assert run is not None
        return tree, first, lambda: process.fail(run)

    *_, alone = prepared()
    count = steps(process.harness, alone)
    resubmitted = 0
    for number in range(1, count + 1):
        tree, first, slow = prepared()

        def next_round(tree: Tree = tree, first: int = first) -> bool:
            try:
                process.harness.store.control.resubmit(tree.ids[0], unique(), None)
            except InvalidTransitionError:
                return False
            run: Run | None = process.claim(first)
            assert run is not None
            if ends == "die":
                with process.dying():
                    process.fail(run)
            else:
                process.fail(run)
            return True

        _, again = in_the_middle(process.harness, number, slow, next_round)
        resubmitted += again
        process.settle_what_is_left()
        details = f"stopped at statement {number} of {count}; {again}; {tree.statuses()}"
        assert tree.statuses()[0] == ERROR, details
        assert all(process.harness.status(job_id).final for job_id in tree.ids), details
        assert process.unsettled() == 0, details
        assert process.harness.store.control.resubmit(tree.ids[0], unique(), None), details
        run_to_the_end(process, tree.ids)
        assert set(tree.statuses()) == {FINISHED}, details
    assert resubmitted
