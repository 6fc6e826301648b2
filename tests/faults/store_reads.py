"""Every call of the store that reads, and changes nothing."""

from datetime import timedelta
from functools import partial

from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Selection, Store
from tests.faults.store_scenes import Scene, lapsed, late, of_job, of_run, scene
from tests.store.harness import FAILURE, HELD, Harness
from tests.store.members import Tree, chain, settle_all, task

_queued, _failed = partial(of_job, JobStatus.QUEUED), partial(of_job, JobStatus.ERROR)


def _tree(harness: Harness) -> int:
    return Tree(harness, chain(task(), task())).ids[0]


def _failed_tree(harness: Harness) -> int:
    tree = Tree(harness, chain(task()))
    harness.store.runs.fail(tree.run(1), FAILURE)
    settle_all(harness, tree.ids[1])
    return tree.ids[0]


def _failed_member(store: Store, root_id: int) -> bool:
    root = store.queries.job(root_id)
    member = None if root is None else store.queries.failed_member(root)[0]
    return member is not None


def _size(store: Store, root_id: int) -> int:
    root = store.queries.job(root_id)
    return 0 if root is None else len(store.diagnostics.tree(root))


READS: dict[str, Scene] = {
    "check": of_run(lambda store, run: store.runs.check(run)),
    "job": _queued(lambda store, job_id: getattr(store.queries.job(job_id), "status", None)),
    "stored_job": _queued(lambda store, job_id: getattr(store.queries.stored_job(job_id), "status", None)),
    "outcomes": _failed(lambda store, job_id: [it.error for it in store.queries.outcomes([job_id]).values()]),
    "id_of_task": of_run(lambda store, run: store.queries.id_of_task(run.task_id) == run.job_id),
    "ids_of_tasks": of_run(
        lambda store, run: store.queries.ids_of_tasks([run.task_id]) == ([run.job_id], [])
    ),
    "children": scene(_tree, lambda store, root: len(store.queries.children(root) or ())),
    "members": scene(_tree, lambda store, root: len(store.queries.members(root) or ())),
    "tree": scene(_tree, _size),
    "status": _queued(lambda store, job_id: store.queries.status(job_id)),
    "final": _failed(lambda store, job_id: list(store.queries.final([job_id, 0]).values())),
    "states": scene(_tree, lambda store, root: list(store.queries.states([root]).values())),
    "find": _queued(lambda store, _: len(store.pages.find(Selection(), None, 10))),
    "count_by_status": _queued(lambda store, _: store.queries.count_by_status()),
    "failed_member": scene(_failed_tree, _failed_member),
    "needs": _queued(lambda store, job_id: store.queries.needs(job_id)),
    "results_needed": _queued(lambda store, job_id: store.queries.results_needed(job_id, 9)),
    "events": _queued(lambda store, job_id: len(store.queries.events(job_id))),
    "ids": _queued(lambda store, _: len(store.pages.ids(Selection()))),
    "page": _queued(lambda store, _: len(store.pages.page(Selection(), None, 10).jobs)),
    "now": lambda _harness: lambda store: store.stats.now() is not None,
    "tally": _queued(lambda store, _: [row.count for row in store.stats.tally()]),
    "ended_within": _failed(lambda store, _: len(store.stats.ended_within(timedelta(days=1)))),
    "submitted_within": _failed(lambda store, _: store.stats.submitted_within(timedelta(days=1))),
    "touched_within": _failed(lambda store, _: len(store.diagnostics.touched_within(timedelta(days=1), 10))),
    "workers": of_run(lambda store, _: len(store.stats.workers())),
    "running": of_run(lambda store, _: len(store.stats.running(10))),
    "passes": lambda _harness: lambda store: store.stats.passes(),
    "durability": lambda _harness: lambda store: store.diagnostics.durability() is not None,
    "count_startable": _queued(lambda store, _: store.stats.count_startable("task")),
    "count_held": of_job(HELD, lambda store, _: store.diagnostics.count_held()),
    "details": of_run(
        lambda store, run: getattr(store.diagnostics.details(run.job_id), "job", None) is not None
    ),
    "details_of": of_run(lambda store, run: len(store.diagnostics.details_of([run.job_id]))),
    "stuck": of_run(lambda store, _: len(store.diagnostics.stuck(timedelta(minutes=1), 3))),
    "count_queued": _queued(lambda store, _: store.outbox.count_queued(["q"]), queue="q"),
    "first_due": scene(late, lambda store, _: store.sweep.first_due() is not None),
    "lapsed_workers": scene(lapsed, lambda store, _: store.leases.lapsed_workers()),
    "runs": of_run(lambda store, run: store.leases.runs(str(run.worker.worker_uid))),
    "superseded": of_run(
        lambda store, run: store.leases.superseded([(run.job_id, run.task_id, run.attempt)])
    ),
}
