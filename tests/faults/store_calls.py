"""Every call of the store that is repeated when a connection breaks, each with the rows that it needs."""

import uuid
from datetime import timedelta
from typing import Any

from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import MessageKey, ProcessRef, Run, RunResult, Selection, Store, Worker
from tests.faults.store_reads import READS
from tests.faults.store_scenes import (
    Scene,
    lapsed,
    late,
    normalize,
    of_job,
    of_message,
    of_run,
    of_stopping_run,
    of_worker,
    received,
    remaining_rows,
    running,
    scene,
    sibling_harness,
    unstarted,
)
from tests.faults.store_trees import TREES
from tests.store.harness import FAILURE, HELD, TASK, Harness, new_job

QUEUED, RUNNING, ERROR = JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.ERROR


def run_undisturbed(base: Harness, name: str) -> tuple[str, list[str]]:
    """Make a call without faults; return its answer and all rows afterwards."""
    harness = sibling_harness(base)
    answer = normalize(STORE_CALLS[name](harness)(harness.store))
    return answer, remaining_rows(harness)


def _process(run: Run) -> ProcessRef:
    return ProcessRef(run.job_id, run.task_id, run.attempt, str(run.worker.worker_uid), run.worker.pid)


def _with_token(harness: Harness, state: str, **given: Any) -> tuple[int, str]:
    return harness.place(state, **given).job_id, str(uuid.uuid4())


def _submit(*keys: str | None, taken: bool = False, **given: Any) -> Scene:
    def new(harness: Harness) -> list[Any]:
        if taken:
            harness.submit(unique_key=keys[0])
        return [new_job(unique_key=key, **given) for key in keys or (None,)]

    return scene(new, lambda store, jobs: store.inserter.submit(jobs))


def _set(state: str, status: JobStatus) -> Scene:
    return scene(
        lambda harness: _with_token(harness, state),
        lambda store, given: store.control.set_status(given[0], status, given[1], None, "by hand"),
    )


def _claim(state: str) -> Scene:
    return scene(
        lambda harness: harness.key(harness.place(state).job_id, harness.worker()),
        lambda store, key: store.runs.claim(key, TASK) == key,
    )


def _cancelled(harness: Harness, state: str) -> tuple[int, str]:
    job_id = harness.place(state).job_id
    harness.store.control.cancel(job_id, None, terminate=False)
    return job_id, harness.row(job_id)["task_id"]


def _superseded(harness: Harness) -> Run:
    run = running(harness)
    harness.store.control.set_status(run.job_id, ERROR, "by hand", None, None)
    return run


def _not_yet_renewed(harness: Harness) -> Worker:
    me = harness.worker()
    harness.store.leases.retire(me)
    return me


def _received(harness: Harness) -> tuple[MessageKey, Worker]:
    me = harness.worker()
    return received(harness, me), me


def _message_and_worker(harness: Harness) -> tuple[Any, Worker]:
    return harness.message(harness.place(QUEUED).job_id), harness.worker()


def _unreported_cancels(store: Store, _: None) -> None:
    store.sweep.unreported_cancels(10)  # a lost answer loses one event


def _passed(harness: Harness) -> None:
    harness.store.sweep.begin_pass()
    harness.pass_time(minutes=1)


def _old(harness: Harness) -> None:
    harness.place(JobStatus.FINISHED)
    harness.pass_time(days=2)


def _cancelled_long_ago(harness: Harness) -> None:
    _cancelled(harness, QUEUED)
    harness.pass_time(hours=1)


def _reserved(harness: Harness) -> Any:
    late(harness)
    return harness.store.outbox.reserve_due(1)


def _claim_together(store: Store, run: Run) -> bool:
    """Claim as `Claimer` does: by itself what was not won with others."""
    won = store.runs.claim_many({run: TASK}, run.worker)
    return run.claim_id in won or store.runs.claim(run, TASK) == run


WRITES: dict[str, Scene] = {
    "submit": _submit(),
    "submit with a unique key": _submit("k"),
    "submit with times": _submit(scheduled_for=timedelta(hours=1), expires=timedelta(hours=2)),
    "submit of several": _submit("k0", "k1", "k2"),
    "submit of a key that is taken": _submit("k", taken=True),
    "reserve": of_job(JobStatus.SUBMITTED, lambda store, job_id: store.outbox.reserve([job_id])),
    "mark_queued": of_message(
        JobStatus.SUBMITTED, lambda store, message: store.outbox.mark_queued([message])
    ),
    "defer_unsendable": scene(
        _reserved, lambda store, reserved: store.outbox.defer_unsendable(reserved, "refused")
    ),
    "release": scene(
        lambda harness: _with_token(harness, HELD), lambda store, given: store.control.release(*given, None)
    ),
    "resubmit": scene(
        lambda harness: _with_token(harness, ERROR, unique_key="k"),
        lambda store, given: store.control.resubmit(*given, None) == [given[0]],
    ),
    **{f"claim from {state}": _claim(state) for state in ("Submitted", "Waiting", "Queued", "Requeued")},
    "claim of an expired one": scene(
        lambda harness: harness.key(late(harness, expires=timedelta(minutes=1)), harness.worker()),
        lambda store, key: store.runs.claim(key, TASK),
    ),
    "claim_many": scene(lambda harness: harness.key(harness.submit(), harness.worker()), _claim_together),
    "mark_revoke_reported": scene(
        lambda harness: _cancelled(harness, JobStatus.SUBMITTED),
        lambda store, given: store.runs.mark_revoke_reported(*given),
    ),
    "finish": of_run(lambda store, run: store.runs.finish(run, "1")),
    "finish_many": of_run(lambda store, run: len(store.runs.finish_many({run: RunResult("1")}, run.worker))),
    "fail": of_run(lambda store, run: store.runs.fail(run, FAILURE)),
    "stop": of_stopping_run(lambda store, run: store.runs.stop(run, "stopped")),
    "retry": of_run(lambda store, run: store.runs.retry(run, "{}", "q", 3.0, "again")),
    "retry of one asked to stop": of_stopping_run(
        lambda store, run: store.runs.retry(run, "{}", None, None, "again")
    ),
    "note_body_exited": scene(_superseded, lambda store, run: store.runs.note_body_exited(run)),
    "note_progress": of_run(lambda store, run: store.runs.note_progress(run, 1, 2)),
    "send_back": scene(
        _message_and_worker,
        lambda store, given: store.runs.send_back(
            given[0].job_id, given[0].task_id, given[0].attempt, given[0].task, given[1]
        ),
    ),
    "fail_process": of_run(
        lambda store, run: store.recovery.fail_process(_process(run), FAILURE, run.worker)
    ),
    "stop_process": of_stopping_run(
        lambda store, run: store.recovery.stop_process(_process(run), "ended", run.worker)
    ),
    "lose": of_run(lambda store, run: store.recovery.lose(run, "gone", run.worker)),
    "lose with attempts left": of_run(
        lambda store, run: store.recovery.lose(run, "gone", run.worker), max_attempts=2
    ),
    "lose of one asked to stop": of_stopping_run(
        lambda store, run: store.recovery.lose(run, "gone", run.worker)
    ),
    "note_received": unstarted(lambda store, key, me: store.recovery.note_received([key], me)),
    "clear_received": scene(
        _received, lambda store, given: store.recovery.clear_received([given[0]], given[1])
    ),
    "lose_unstarted": unstarted(lambda store, key, me: store.recovery.lose_unstarted(key, me)),
    "give_back": of_run(lambda store, run: store.recovery.give_back(run, "cut off", run.worker)),
    "give_back_all": of_run(lambda store, run: store.recovery.give_back_all(run.worker, "it shut down")),
    **{
        f"cancel from {state}": of_job(
            state, lambda store, job_id: store.control.cancel(job_id, None, terminate=True)
        )
        for state in ("Submitted", HELD, "Queued", "Requeued", "Resubmitted", "Running", "Finished")
    },
    "cancel_selected": of_job(
        QUEUED, lambda store, job_id: store.control.cancel_selected(Selection(ids=(job_id,)))
    ),
    "set_status Running": _set(QUEUED, RUNNING),
    "set_status Finished": _set(RUNNING, JobStatus.FINISHED),
    "set_status Error": _set(RUNNING, ERROR),
    "set_status Cancelled": _set(QUEUED, JobStatus.CANCELLED),
    "set_status of a final one": _set(ERROR, JobStatus.FINISHED),
    "set_message": of_job(
        QUEUED, lambda store, job_id: store.control.set_message(job_id, "new", None, None), message="old"
    ),
    "note_progress_of": of_job(
        RUNNING, lambda store, job_id: store.control.note_progress_of(job_id, 1, 2, None)
    ),
    "prune": scene(_old, lambda store, _: store.sweep.prune(timedelta(days=1))),
    "begin_pass for the first time": scene(lambda _: None, lambda store, _: store.sweep.begin_pass()),
    "begin_pass": scene(_passed, lambda store, _: store.sweep.begin_pass()),
    "expire": scene(
        lambda harness: late(harness, expires=timedelta(seconds=1)), lambda store, _: store.sweep.expire()
    ),
    "unreported_cancels": scene(_cancelled_long_ago, _unreported_cancels),
    "reserve_due": scene(late, lambda store, _: store.outbox.reserve_due(10)),
    "defer_republish": of_message(QUEUED, lambda store, message: store.outbox.defer_republish([message])),
    "reap": scene(lapsed, lambda store, worker_uid: store.leases.reap(worker_uid)),
    "renew for the first time": scene(_not_yet_renewed, lambda store, me: store.leases.renew(me)),
    "renew": of_worker(lambda store, me: store.leases.renew(me)),
    "retire": of_worker(lambda store, me: store.leases.retire(me)),
}

STORE_CALLS: dict[str, Scene] = WRITES | TREES | READS
