"""Every call of the store that is repeated when a connection breaks, each with the rows that it needs."""

import re
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Table, select

from jobhandle_celery.schema import job, job_event, sweep, worker
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import ProcessRef, Run, Selection, Store, Worker
from jobhandle_celery.store.recovery import Message
from tests.store.harness import FAILURE, HELD, TASK, Bench, new_job

Call = Callable[[Store], Any]
"""One call. Ids and tokens are made beforehand, so that a repeat returns the same."""

_CHANCE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{64}|(?<=job_id=)\d+")
_OF_THE_RUN = {"id", "job_id", "namespace"}


def normalize(value: Any) -> str:
    """Return an answer as text, without the parts that differ in every run: ids, tokens, digests."""
    return _CHANCE.sub("…", repr(value))


def remaining_rows(bench: Bench) -> list[str]:
    """Return all rows of the bench's namespace, of every table; times only as null or not."""
    with bench.database.autocommit() as connection:
        here = job.c.namespace == bench.settings.namespace
        rows: list[str] = []
        for table, which in (
            (job, here),
            (job_event, job_event.c.job_id.in_(select(job.c.id).where(here))),
            (worker, worker.c.namespace == bench.settings.namespace),
            (sweep, sweep.c.namespace == bench.settings.namespace),
        ):
            found = connection.execute(select(table).where(which).order_by(*table.primary_key))
            rows += [_row(table, dict(row)) for row in found.mappings()]
        return rows


def sibling_bench(base: Bench) -> Bench:
    """Return a bench with its own namespace over the same connections: a new engine takes time."""
    return Bench(base.url, base.database, namespace=str(uuid.uuid4()))


def run_undisturbed(base: Bench, name: str) -> tuple[str, list[str]]:
    """Make a call without faults; return its answer and all rows afterwards."""
    bench = sibling_bench(base)
    answer = normalize(STORE_CALLS[name](bench)(bench.store))
    return answer, remaining_rows(bench)


def _row(table: Table, row: dict[str, Any]) -> str:
    kept = {
        name: "a moment" if isinstance(value, datetime) else value
        for name, value in row.items()
        if name not in _OF_THE_RUN
    }
    return normalize({table.name: kept})


def _running(bench: Bench, **given: Any) -> Run:
    run = bench.place(JobStatus.RUNNING, **given).run
    assert run is not None
    return run


def _process(run: Run) -> ProcessRef:
    return ProcessRef(run.job_id, run.task_id, run.attempt, str(run.worker.worker_uid), run.worker.pid)


def _asked_to_stop(bench: Bench) -> Run:
    run = _running(bench)
    bench.store.control.cancel(run.job_id, None, terminate=False)
    return run


def _submit(**given: Any) -> Callable[[Bench], Call]:
    def scene(bench: Bench) -> Call:
        new = new_job(**given)
        return lambda store: store.inserter.submit([new])

    return scene


def _submit_many(bench: Bench) -> Call:
    several = [new_job(unique_key=f"k{number}") for number in range(3)]
    return lambda store: store.inserter.submit(several)


def _submit_again(bench: Bench) -> Call:
    bench.submit(unique_key="k")
    new = new_job(unique_key="k")
    return lambda store: store.inserter.submit([new])


def _of_job(state: str, call: Callable[[Store, int], Any], **given: Any) -> Callable[[Bench], Call]:
    def scene(bench: Bench) -> Call:
        job_id = bench.place(state, **given).job_id
        return lambda store: call(store, job_id)

    return scene


def _of_run(call: Callable[[Store, Run], Any], **given: Any) -> Callable[[Bench], Call]:
    def scene(bench: Bench) -> Call:
        run = _running(bench, **given)
        return lambda store: call(store, run)

    return scene


def _of_stopping_run(call: Callable[[Store, Run], Any]) -> Callable[[Bench], Call]:
    def scene(bench: Bench) -> Call:
        run = _asked_to_stop(bench)
        return lambda store: call(store, run)

    return scene


def _set(state: str, status: JobStatus) -> Callable[[Bench], Call]:
    token = str(uuid.uuid4())
    return _of_job(
        state, lambda store, job_id: store.control.set_status(job_id, status, token, None, "by hand")
    )


def _claim(state: str) -> Callable[[Bench], Call]:
    def scene(bench: Bench) -> Call:
        key = bench.key(bench.place(state).job_id, bench.worker())
        return lambda store: store.runs.claim(key, TASK) == key

    return scene


def _claim_of_expired(bench: Bench) -> Call:
    job_id = bench.submit(expires=timedelta(minutes=1))
    bench.pass_time(minutes=2)
    key = bench.key(job_id, bench.worker())
    return lambda store: store.runs.claim(key, TASK)


def _mark_revoke_reported(bench: Bench) -> Call:
    job_id = bench.submit()
    bench.store.control.cancel(job_id, None, terminate=False)
    task_id = bench.row(job_id)["task_id"]
    return lambda store: store.runs.mark_revoke_reported(job_id, task_id)


def _leave(bench: Bench) -> Call:
    run = _running(bench)
    bench.store.control.set_status(run.job_id, JobStatus.ERROR, "by hand", None, None)
    return lambda store: store.runs.leave(run)


def _send_back(bench: Bench) -> Call:
    job_id, by = bench.place(JobStatus.QUEUED).job_id, bench.worker()
    message = bench.message(job_id)
    return lambda store: store.runs.send_back(job_id, message.task_id, message.attempt, message.task, by)


def _of_message(state: str, call: Callable[[Store, Any], Any], **given: Any) -> Callable[[Bench], Call]:
    def scene(bench: Bench) -> Call:
        message = bench.message(bench.place(state, **given).job_id)
        return lambda store: call(store, message)

    return scene


def _unstarted(call: Callable[[Store, Message, Worker], Any]) -> Callable[[Bench], Call]:
    """Deliver a message that a lost worker had received to the next worker."""

    def scene(bench: Bench) -> Call:
        job_id = bench.place(JobStatus.QUEUED, max_attempts=3).job_id
        message = bench.message(job_id)
        key = job_id, message.task_id, message.attempt
        bench.store.recovery.note_received([key], bench.worker())
        me = bench.worker()
        return lambda store: call(store, key, me)

    return scene


def _clear_received(bench: Bench) -> Call:
    job_id, me = bench.place(JobStatus.QUEUED).job_id, bench.worker()
    message = bench.message(job_id)
    key = job_id, message.task_id, message.attempt
    bench.store.recovery.note_received([key], me)
    return lambda store: store.recovery.clear_received([key], me)


def _release(bench: Bench) -> Call:
    job_id, token = bench.place(HELD).job_id, str(uuid.uuid4())
    return lambda store: store.control.release(job_id, token, None)


def _defer_unsendable(bench: Bench) -> Call:
    bench.submit()
    bench.pass_time(minutes=2)
    reserved = bench.store.outbox.reserve_due(1)
    return lambda store: store.outbox.defer_unsendable(reserved, "refused")


def _resubmit(bench: Bench) -> Call:
    job_id = bench.place(JobStatus.ERROR, unique_key="k").job_id
    task_id = str(uuid.uuid4())
    return lambda store: store.control.resubmit(job_id, task_id, None)


def _prune(bench: Bench) -> Call:
    bench.place(JobStatus.FINISHED)
    bench.pass_time(days=2)
    return lambda store: store.sweep.prune(timedelta(days=1))


def _begin_first_pass(bench: Bench) -> Call:
    return lambda store: store.sweep.begin_pass()


def _begin_pass(bench: Bench) -> Call:
    bench.store.sweep.begin_pass()
    bench.pass_time(minutes=1)
    return lambda store: store.sweep.begin_pass()


def _unreported_cancels(bench: Bench) -> Call:
    placed = bench.place(JobStatus.QUEUED)
    bench.store.control.cancel(placed.job_id, None, terminate=False)
    bench.pass_time(hours=1)

    def call(store: Store) -> None:
        store.sweep.unreported_cancels(10)  # a lost answer loses one event

    return call


def _expire(bench: Bench) -> Call:
    bench.submit(expires=timedelta(seconds=1))
    bench.pass_time(minutes=20)
    return lambda store: store.sweep.expire()


def _reserve(bench: Bench) -> Call:
    bench.submit()
    bench.pass_time(minutes=2)
    return lambda store: store.outbox.reserve_due(10)


def _lapsed(bench: Bench) -> Run:
    run = _running(bench, max_attempts=2)
    bench.pass_time(minutes=20)
    bench.trust_leases()
    return run


def _lapsed_workers(bench: Bench) -> Call:
    _lapsed(bench)
    return lambda store: store.leases.lapsed_workers()


def _reap(bench: Bench) -> Call:
    worker_uid = str(_lapsed(bench).worker.worker_uid)
    return lambda store: store.leases.reap(worker_uid)


def _renew(bench: Bench) -> Call:
    me = bench.worker()
    return lambda store: store.leases.renew(me)


def _renew_first(bench: Bench) -> Call:
    me = bench.worker()
    bench.store.leases.retire(me)
    return lambda store: store.leases.renew(me)


def _retire(bench: Bench) -> Call:
    me = bench.worker()
    return lambda store: store.leases.retire(me)


STORE_CALLS: dict[str, Callable[[Bench], Call]] = {
    "submit": _submit(),
    "submit with a unique key": _submit(unique_key="k"),
    "submit with times": _submit(scheduled_for=timedelta(hours=1), expires=timedelta(hours=2)),
    "submit of several": _submit_many,
    "submit of a key that is taken": _submit_again,
    "reserve": _of_job(JobStatus.SUBMITTED, lambda store, job_id: store.outbox.reserve([job_id])),
    "mark_queued": _of_message(
        JobStatus.SUBMITTED, lambda store, message: store.outbox.mark_queued([message])
    ),
    "defer_unsendable": _defer_unsendable,
    "release": _release,
    "resubmit": _resubmit,
    **{f"claim from {state}": _claim(state) for state in ("Submitted", "Waiting", "Queued", "Requeued")},
    "claim of an expired one": _claim_of_expired,
    "mark_revoke_reported": _mark_revoke_reported,
    "finish": _of_run(lambda store, run: store.runs.finish(run, "1")),
    "fail": _of_run(lambda store, run: store.runs.fail(run, FAILURE)),
    "stop": _of_stopping_run(lambda store, run: store.runs.stop(run, "stopped")),
    "retry": _of_run(lambda store, run: store.runs.retry(run, "{}", "q", 3.0, "again")),
    "retry of one asked to stop": _of_stopping_run(
        lambda store, run: store.runs.retry(run, "{}", None, None, "again")
    ),
    "leave": _leave,
    "check": _of_run(lambda store, run: store.runs.check(run)),
    "note_progress": _of_run(lambda store, run: store.runs.note_progress(run, 1, 2)),
    "send_back": _send_back,
    "fail_process": _of_run(
        lambda store, run: store.recovery.fail_process(_process(run), FAILURE, run.worker)
    ),
    "stop_process": _of_stopping_run(
        lambda store, run: store.recovery.stop_process(_process(run), "ended", run.worker)
    ),
    "lose": _of_run(lambda store, run: store.recovery.lose(run, "gone", run.worker)),
    "lose with attempts left": _of_run(
        lambda store, run: store.recovery.lose(run, "gone", run.worker), max_attempts=2
    ),
    "lose of one asked to stop": _of_stopping_run(
        lambda store, run: store.recovery.lose(run, "gone", run.worker)
    ),
    "note_received": _unstarted(lambda store, key, me: store.recovery.note_received([key], me)),
    "clear_received": _clear_received,
    "lose_unstarted": _unstarted(lambda store, key, me: store.recovery.lose_unstarted(key, me)),
    "give_back": _of_run(lambda store, run: store.recovery.give_back(run, "cut off", run.worker)),
    "give_back_all": _of_run(lambda store, run: store.recovery.give_back_all(run.worker, "it shut down")),
    **{
        f"cancel from {state}": _of_job(
            state, lambda store, job_id: store.control.cancel(job_id, None, terminate=True)
        )
        for state in ("Submitted", HELD, "Queued", "Requeued", "Resubmitted", "Running", "Finished")
    },
    "cancel_selected": _of_job(
        JobStatus.QUEUED, lambda store, job_id: store.control.cancel_selected(Selection(ids=(job_id,)))
    ),
    "set_status Running": _set(JobStatus.QUEUED, JobStatus.RUNNING),
    "set_status Finished": _set(JobStatus.RUNNING, JobStatus.FINISHED),
    "set_status Error": _set(JobStatus.RUNNING, JobStatus.ERROR),
    "set_status Cancelled": _set(JobStatus.QUEUED, JobStatus.CANCELLED),
    "set_status of a final one": _set(JobStatus.ERROR, JobStatus.FINISHED),
    "set_message": _of_job(
        JobStatus.QUEUED,
        lambda store, job_id: store.control.set_message(job_id, "new", None, None),
        message="old",
    ),
    "note_progress_of": _of_job(
        JobStatus.RUNNING, lambda store, job_id: store.control.note_progress_of(job_id, 1, 2, None)
    ),
    "job": _of_job(
        JobStatus.QUEUED, lambda store, job_id: getattr(store.queries.job(job_id), "status", None)
    ),
    "status": _of_job(JobStatus.QUEUED, lambda store, job_id: store.queries.status(job_id)),
    "unfinished": _of_job(JobStatus.QUEUED, lambda store, job_id: len(store.queries.unfinished([job_id]))),
    "find": _of_job(JobStatus.QUEUED, lambda store, _: len(store.pages.find(Selection(), None, 10))),
    "count_by_status": _of_job(JobStatus.QUEUED, lambda store, _: store.queries.count_by_status()),
    "events": _of_job(JobStatus.QUEUED, lambda store, job_id: len(store.queries.events(job_id))),
    "ids": _of_job(JobStatus.QUEUED, lambda store, _: len(store.pages.ids(Selection()))),
    "page": _of_job(JobStatus.QUEUED, lambda store, _: len(store.pages.page(Selection(), None, 10).jobs)),
    "now": lambda _bench: lambda store: store.stats.now() is not None,
    "tally": _of_job(JobStatus.QUEUED, lambda store, _: [row.count for row in store.stats.tally()]),
    "ended_within": _of_job(
        JobStatus.ERROR, lambda store, _: len(store.stats.ended_within(timedelta(days=1)))
    ),
    "submitted_within": _of_job(
        JobStatus.ERROR, lambda store, _: store.stats.submitted_within(timedelta(days=1))
    ),
    "touched_within": _of_job(
        JobStatus.ERROR, lambda store, _: len(store.diagnostics.touched_within(timedelta(days=1), 10))
    ),
    "workers": _of_run(lambda store, _: len(store.stats.workers())),
    "running": _of_run(lambda store, _: len(store.stats.running(10))),
    "passes": lambda _bench: lambda store: store.stats.passes(),
    "durability": lambda _bench: lambda store: store.diagnostics.durability() is not None,
    "count_startable": _of_job(JobStatus.QUEUED, lambda store, _: store.stats.count_startable("task")),
    "count_held": _of_job(HELD, lambda store, _: store.diagnostics.count_held()),
    "details": _of_run(
        lambda store, run: getattr(store.diagnostics.details(run.job_id), "job", None) is not None
    ),
    "details_of": _of_run(lambda store, run: len(store.diagnostics.details_of([run.job_id]))),
    "stuck": _of_run(lambda store, _: len(store.diagnostics.stuck(timedelta(minutes=1), 3))),
    "prune": _prune,
    "begin_pass for the first time": _begin_first_pass,
    "begin_pass": _begin_pass,
    "expire": _expire,
    "unreported_cancels": _unreported_cancels,
    "reserve_due": _reserve,
    "count_queued": _of_job(JobStatus.QUEUED, lambda store, _: store.outbox.count_queued(["q"]), queue="q"),
    "defer_republish": _of_message(
        JobStatus.QUEUED, lambda store, message: store.outbox.defer_republish([message])
    ),
    "lapsed_workers": _lapsed_workers,
    "reap": _reap,
    "renew for the first time": _renew_first,
    "renew": _renew,
    "retire": _retire,
    "runs": _of_run(lambda store, run: store.leases.runs(str(run.worker.worker_uid))),
    "superseded": _of_run(
        lambda store, run: store.leases.superseded([(run.job_id, run.task_id, run.attempt)])
    ),
}

READ_ONLY = {
    "check",
    "job",
    "status",
    "unfinished",
    "find",
    "count_by_status",
    "events",
    "count_queued",
    "lapsed_workers",
    "runs",
    "superseded",
    # Queries of the command line.
    "ids",
    "page",
    "now",
    "tally",
    "ended_within",
    "submitted_within",
    "touched_within",
    "workers",
    "running",
    "passes",
    "durability",
    "count_startable",
    "count_held",
    "details",
    "details_of",
    "stuck",
}
"""Calls that change nothing, and so succeed on a read-only server."""
