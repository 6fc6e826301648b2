"""Every store call that changes rows, as an `Act` made on the store and on the model.

A test fails for a store call that is neither here nor shown by tests/faults/store_calls.py to change
nothing.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from jobhandle_celery.errors import InvalidTransitionError
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import (
    ClaimRejected,
    PendingMessage,
    RejectionReason,
    Selection,
)
from tests.store.act import KEY, Act, Cast
from tests.store.harness import FAILURE, TASK, new_job
from tests.store.model import Model
from tests.store.model_job import CANCELLED, ERROR, FINISHED, RUNNING, ModelJob


def _statuses(settled: list[Any]) -> list[JobStatus]:
    return [job.status for job in settled]


def _submit(cast: Cast, token: str) -> tuple[bool, JobStatus]:
    [submitted] = cast.store.inserter.submit([new_job(task_id=token, unique_key=KEY)])
    return submitted.fresh, submitted.status


def _expect_submit(_cast: Cast, model: Model, _job: ModelJob, token: str) -> tuple[bool, JobStatus]:
    if there := model.holder(KEY):
        return there.task_id == token, there.status
    return True, model.submit(-len(model.jobs), token, KEY).status


def _resubmit(cast: Cast, token: str) -> bool | str:
    try:
        return cast.store.control.resubmit(cast.job_id, token, None) == [cast.job_id]
    except InvalidTransitionError:
        return "key"


def _expect_cancel_selected(cast: Cast, model: Model, job: ModelJob, _: str) -> int:
    before = len(job.events)
    model.cancel(job, False)
    return len(job.events) - before


def _claim(by: str) -> Act:
    return Act(
        "claim",
        lambda cast, _: cast.store.runs.claim(getattr(cast, by), TASK),
        lambda cast, model, job, _: model.claim(getattr(cast, by)),
        gone=ClaimRejected(RejectionReason.UNKNOWN),
        repeated=(ClaimRejected(RejectionReason.CANCELLED),),  # of a job that has expired: it was cancelled
    )


def _end(verb: str, status: JobStatus, message: str, *given: Any) -> Act:
    return Act(
        verb,
        lambda cast, _: getattr(cast.store.runs, verb)(cast.run, *given),
        lambda cast, model, job, _: model.end(cast.run, status, message),
    )


def _retry(delay: float) -> Act:
    return Act(
        "retry",
        lambda cast, _: cast.store.runs.retry(cast.run, "{}", None, delay * 60 or None, "again"),
        lambda cast, model, job, _: model.retry(cast.run, delay),
        gone=None,
    )


def _settle(verb: str, holder: str) -> Act:
    def expect(cast: Cast, model: Model, _job: ModelJob, _token: str) -> list[JobStatus]:
        lost = getattr(cast, holder)
        return model.lose(lost, "gone") if verb == "lose" else model.give_back(lost)

    return Act(
        verb,
        lambda cast, _: _statuses(getattr(cast.store.recovery, verb)(getattr(cast, holder), "gone", cast.me)),
        expect,
        gone=[],
        repeated=([],),
    )


def _note_received(by: str) -> Act:
    return Act(
        "note_received",
        lambda cast, _: _statuses(
            cast.store.recovery.note_received([_message(cast.sent)], getattr(cast, by))
        ),
        lambda cast, model, job, _: model.note_received(cast.sent, str(getattr(cast, by).worker_uid)),
        gone=[],
        skipping=[],
        repeated=([],),
    )


def _message(sent: PendingMessage) -> tuple[int, str, int]:
    return sent.job_id, sent.task_id, sent.attempt


def _cancel(*, terminate: bool) -> Act:
    return Act(
        "cancel",
        lambda cast, _: cast.store.control.cancel(cast.job_id, None, terminate=terminate),
        lambda cast, model, job, _: model.cancel(job, terminate),
        gone=None,
    )


def _set(status: JobStatus) -> Act:
    return Act(
        "set_status",
        lambda cast, token: cast.store.control.set_status(cast.job_id, status, token, None, token),
        lambda cast, model, job, token: model.set_status(job, status, token, token),
        gone=(None, False),
    )


def _about_message(verb: str, expect: Callable[[Model, PendingMessage], Any], *given: Any) -> Act:
    return Act(
        verb,
        lambda cast, _: getattr(cast.store.outbox, verb)([cast.sent], *given),
        lambda cast, model, job, _: expect(model, cast.sent),
        gone=None,
        skipping=None,
    )


ACTS: dict[str, Act] = {
    "submit": Act("submit", _submit, _expect_submit, of_job=False),
    "mark_queued": _about_message("mark_queued", Model.mark_queued),
    "mark_queued late": Act(
        "mark_queued",
        lambda cast, _: cast.store.outbox.mark_queued([cast.late]),
        lambda cast, model, job, _: model.mark_queued(cast.late),
        gone=None,
        skipping=None,
    ),
    "defer_unsendable": _about_message("defer_unsendable", Model.defer_unsendable, "refused"),
    "defer_republish": _about_message("defer_republish", Model.defer_republish),
    "send_back": Act(
        "send_back",
        lambda cast, _: cast.store.runs.send_back(
            cast.job_id, cast.sent.task_id, cast.sent.attempt, TASK, cast.other
        ),
        lambda cast, model, job, _: model.send_back(cast.sent),
        repeated=(False,),
    ),
    "reserve_due": Act(
        "reserve_due",
        lambda cast, _: {(message.task_id, message.attempt) for message in cast.store.outbox.reserve_due(10)},
        lambda cast, model, job, _: {
            (model.jobs[job_id].task_id, attempt) for job_id, attempt in model.reserve()
        },
        of_job=False,
        skipping=set(),
        repeated=(set(),),
    ),
    "release": Act(
        "release",
        lambda cast, token: cast.store.control.release(cast.job_id, token, None),
        lambda cast, model, job, token: model.release(job, token),
    ),
    "resubmit": Act("resubmit", _resubmit, lambda cast, model, job, token: model.resubmit(job, token)),
    "claim": _claim("run"),
    "claim by a rival": _claim("rival"),
    "claim with the next message": _claim("next_run"),
    "mark_revoke_reported": Act(
        "mark_revoke_reported",
        lambda cast, _: cast.store.runs.mark_revoke_reported(cast.job_id, cast.sent.task_id),
        lambda cast, model, job, _: model.mark_revoke_reported(job, cast.sent.task_id),
        repeated=(True,),
    ),
    "finish": _end("finish", FINISHED, "", "1"),
    "fail": _end("fail", ERROR, "ValueError: no good", FAILURE),
    "stop": _end("stop", CANCELLED, "stopped", "stopped"),
    "retry": _retry(0),
    "retry later": _retry(40.5),
    "note_body_exited": Act(
        "note_body_exited",
        lambda cast, _: cast.store.runs.note_body_exited(cast.run),
        lambda cast, model, job, _: model.leave(cast.run),
        gone=None,
    ),
    "note_progress": Act(
        "note_progress",
        lambda cast, _: cast.store.runs.note_progress(cast.run, 1, 2),
        lambda cast, model, job, _: model.note_progress(job, 1, cast.run),
    ),
    "note_progress_of": Act(
        "note_progress_of",
        lambda cast, _: cast.store.control.note_progress_of(cast.job_id, 3, 4, None),
        lambda cast, model, job, _: model.note_progress(job, 3),
    ),
    "set_message": Act(
        "set_message",
        lambda cast, token: cast.store.control.set_message(cast.job_id, token, None, None),
        lambda cast, model, job, token: model.set_message(job, token),
        gone=None,
    ),
    "set_message of a run": Act(
        "set_message",
        lambda cast, token: cast.store.control.set_message(cast.job_id, token, None, cast.run),
        lambda cast, model, job, token: model.set_message(job, token, cast.run),
        gone=None,
    ),
    "fail_process": Act(
        "fail_process",
        lambda cast, _: cast.store.recovery.fail_process(cast.process, FAILURE, cast.me),
        lambda cast, model, job, _: model.end_process(cast.process, ERROR, "ValueError: no good"),
        repeated=(False,),
    ),
    "stop_process": Act(
        "stop_process",
        lambda cast, _: cast.store.recovery.stop_process(cast.process, "ended", cast.me),
        lambda cast, model, job, _: model.end_process(cast.process, CANCELLED, "ended"),
        repeated=(False,),
    ),
    "lose": _settle("lose", "run"),
    "lose of a process": _settle("lose", "process"),
    "give_back": _settle("give_back", "run"),
    "give_back of a process": _settle("give_back", "process"),
    "give_back_all": Act(
        "give_back_all",
        lambda cast, _: _statuses(cast.store.recovery.give_back_all(cast.me, "gone")),
        lambda cast, model, job, _: model.give_back_all(str(cast.me.worker_uid)),
        of_job=False,
        repeated=([],),
    ),
    "note_received": _note_received("me"),
    "note_received by another": _note_received("other"),
    "clear_received": Act(
        "clear_received",
        lambda cast, _: cast.store.recovery.clear_received([_message(cast.sent)], cast.me),
        lambda cast, model, job, _: model.clear_received(cast.sent, str(cast.me.worker_uid)),
        gone=None,
    ),
    "lose_unstarted": Act(
        "lose_unstarted",
        lambda cast, _: _statuses(cast.store.recovery.lose_unstarted(_message(cast.sent), cast.me)),
        lambda cast, model, job, _: model.lose_unstarted(cast.sent),
        gone=[],
        repeated=([],),
    ),
    "cancel": _cancel(terminate=False),
    "cancel and terminate": _cancel(terminate=True),
    "cancel of a round": Act(
        "cancel",
        lambda cast, _: cast.store.control.cancel(
            cast.job_id, None, terminate=False, task_id=cast.late.task_id
        ),
        lambda cast, model, job, _: model.cancel(job, False) if job.task_id == cast.late.task_id else None,
        gone=None,
    ),
    "cancel_selected": Act(
        "cancel_selected",
        lambda cast, _: cast.store.control.cancel_selected(Selection(ids=(cast.job_id,))),
        _expect_cancel_selected,
        gone=0,
        repeated=(0,),
    ),
    "set Running": _set(RUNNING),
    "set Finished": _set(FINISHED),
    "set Error": _set(ERROR),
    "set Cancelled": _set(CANCELLED),
    "expire": Act(
        "expire",
        lambda cast, _: cast.store.sweep.expire(),
        lambda cast, model, job, _: model.expire(),
        of_job=False,
        skipping=0,
        repeated=(0,),
    ),
    "unreported_cancels": Act(
        "unreported_cancels",
        lambda cast, _: sorted(lost.job_id for lost in cast.store.sweep.unreported_cancels(10)),
        lambda cast, model, job, _: model.unreported_cancels(),
        of_job=False,
        skipping=[],
        repeated=([],),
    ),
    "prune": Act(
        "prune",
        lambda cast, _: cast.store.sweep.prune(timedelta(days=1)),
        lambda cast, model, job, _: model.prune(24 * 60),
        of_job=False,
        skipping=0,
        repeated=(0,),
    ),
    "begin_pass": Act(
        "begin_pass",
        lambda cast, _: cast.store.sweep.begin_pass(),
        lambda cast, model, job, _: model.begin_pass(),
        of_job=False,
        repeated=(None,),
    ),
    "reap": Act(
        "reap",
        lambda cast, _: _statuses(cast.store.leases.reap(str(cast.me.worker_uid))),
        lambda cast, model, job, _: list(model.reap(str(cast.me.worker_uid), cast.me.name).values()),
        of_job=False,
        skipping=[],
        repeated=([],),
    ),
    "renew": Act(
        "renew",
        lambda cast, _: cast.store.leases.renew(cast.me),
        lambda cast, model, job, _: model.renew(str(cast.me.worker_uid)),
        of_job=False,
        repeated=(True,),
    ),
    "retire": Act(
        "retire",
        lambda cast, _: cast.store.leases.retire(cast.me),
        lambda cast, model, job, _: model.retire(str(cast.me.worker_uid)),
        of_job=False,
    ),
}
