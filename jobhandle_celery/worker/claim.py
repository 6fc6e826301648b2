"""Step 1 of running a job: win its row, or refuse its message."""

import logging
import time
import uuid
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Ignore

from .. import internal_errors
from ..broker.headers import headers_of, job_of
from ..errors import ConfigurationError, DatabaseUnavailableError, JobHandleError
from ..runtime import Runtime, runtime_of
from ..store import ClaimRejected, RejectionReason, Run
from ..store.runs import Runs
from .claimer import Claimer
from .current_run import CurrentRun
from .outcomes import GivenBack, Report
from .result_backend import mark_revoked
from .tree_member import complete_arguments, start_nodes

logger = logging.getLogger(__name__)

CLAIM_TIMEOUT = 30.0
"""Seconds for which a claim retries while the database is away; then the sweeper sends another message."""

FOREIGN_EVERY = 60.0
"""Seconds between two log messages that a task's jobs are another service's."""

_foreign_reported: dict[str, float] = {}


class ClaimRefused(Ignore):
    """A message starts nothing; `report` is what the main process is to do about it."""

    def __init__(self, reason: str, report: Report | None = None) -> None:
        super().__init__(reason)
        self.report = report


def claim(task: Any, context: Any) -> CurrentRun:
    """Win the row of a job's request.

    Raises:
        Ignore: the body must not run. Celery drops the message, and stores and sends nothing.
    """
    began = time.monotonic()
    try:
        job = job_of(headers_of(context))
        if job is None:
            raise ValueError("its message names no job")
        runtime = runtime_of(task.app)
    except (ValueError, ConfigurationError) as error:
        logger.error("task %s[%s] was not run: %s", task.name, context.id, error)
        raise Ignore(str(error)) from None
    if runtime.worker is None and not context.is_eager:
        # Jobs(app) was made after this worker had started: nothing would renew a lease for the claim.
        logger.error(
            "job %s was not started: this worker started before Jobs(app) was made, and has no lease; "
            "make Jobs where the app is made",
            job[0],
        )
        raise Ignore("this worker has no lease")
    me = runtime.eager_worker() if context.is_eager else runtime.current_worker()
    claimer = None if context.is_eager else runtime.claimer  # which claims for its worker
    run = Run(job[0], str(context.id), job[1], str(uuid.uuid4()), me)
    try:
        rejected = _claim(runtime.store.runs if claimer is None else claimer, run, task.name)
    except SoftTimeLimitExceeded:
        # While it waited for the database: the body has not begun, so this is not its failure.
        raise _unanswered(run) from None
    if rejected is not None:
        _refuse(task, context, run, rejected)
    current = CurrentRun(run, context, began, task.app)
    _prepare(runtime, current)
    return current


def _prepare(runtime: Runtime, current: CurrentRun) -> None:
    """Do what a member of a tree needs before its body, or give the job back: it has not begun."""
    job_id, reason = current.run.job_id, "the results that it needs were not read"
    try:
        complete_arguments(runtime.store, current)
        start_nodes(runtime, current)
        return
    except SoftTimeLimitExceeded:
        reason = "its soft time limit has passed before its body began"
        logger.warning(
            "job %s was not started: its soft time limit has passed before its body began; it is given back",
            job_id,
        )
    except JobHandleError as error:
        logger.warning("job %s was not started: the results that it needs were not read: %s", job_id, error)
    except Exception as error:
        internal_errors.report("reading results that a job needs", error, f"job {job_id} is given back")
    raise ClaimRefused(reason, Report(None, GivenBack(current.run, reason)))


def _claim(runs: Runs | Claimer, run: Run, task: str) -> ClaimRejected | None:
    deadline, pause = time.monotonic() + CLAIM_TIMEOUT, 0.1
    unanswered = without_lease = False
    while True:
        try:
            claimed: Run | ClaimRejected = runs.claim(run, task)
        except DatabaseUnavailableError as error:
            if not unanswered:
                logger.warning("job %s: its claim waits for the database: %s", run.job_id, error)
            unanswered = True
        except JobHandleError as error:
            logger.error("job %s was not started: %s; the sweeper sends it again", run.job_id, error)
            raise _unanswered(run) from None
        except Exception as error:
            internal_errors.report("claiming a job", error, f"the sweeper sends job {run.job_id} again")
            raise _unanswered(run) from None
        else:
            if isinstance(claimed, Run):
                return None
            if claimed.reason is not RejectionReason.NO_LEASE:
                return claimed
            if not without_lease:
                logger.warning(
                    "job %s: its claim waits until worker %s has a lease", run.job_id, run.worker.name
                )
            without_lease = True
        if time.monotonic() >= deadline:
            if unanswered:
                logger.warning(
                    "job %s was not started: the database did not answer its claim within %g s; "
                    "the sweeper sends it again",
                    run.job_id,
                    CLAIM_TIMEOUT,
                )
                raise _unanswered(run)
            logger.warning(
                "job %s was not started: worker %s had no lease for %g s; the sweeper sends it again",
                run.job_id,
                run.worker.name,
                CLAIM_TIMEOUT,
            )
            return ClaimRejected(RejectionReason.NO_LEASE)
        time.sleep(pause)
        pause = min(pause * 2, 2.0)


def _unanswered(run: Run) -> ClaimRefused:
    """Return the refusal of a claim that was not answered, but may have been committed."""
    given_back = GivenBack(run, "its claim was not answered")
    return ClaimRefused("the database did not answer; the job is sent again", Report(None, given_back))


def _refuse(task: Any, context: Any, run: Run, rejected: ClaimRejected) -> None:
    reason = rejected.reason
    if reason in (RejectionReason.CANCELLED, RejectionReason.EXPIRED) and _is_first_to_report(task, run):
        revoked = "expired" if reason is RejectionReason.EXPIRED else "revoked"
        mark_revoked(task, context, revoked)
        raise ClaimRefused(reason.value, Report(None, revoked=revoked))
    if rejected.foreign:
        _report_foreign(task, context, run, rejected.foreign)
    # A duplicate writes nothing: what is stored under this task id belongs to another message.
    raise Ignore(f"job {run.job_id} is not started by this message: {reason.value}")


def _is_first_to_report(task: Any, run: Run) -> bool:
    try:
        return runtime_of(task.app).store.runs.mark_revoke_reported(run.job_id, run.task_id)
    except JobHandleError as error:
        logger.warning(
            "job %s: its cancellation was not reported to the result backend: %s", run.job_id, error
        )
        return False


def _report_foreign(task: Any, context: Any, run: Run, where: str) -> None:
    """Log that another service's message was dropped here, once a minute for each task."""
    now = time.monotonic()
    if now - _foreign_reported.get(task.name, -FOREIGN_EVERY) < FOREIGN_EVERY:
        return
    _foreign_reported[task.name] = now
    logger.error(
        "job %s (%s[%s]) is not in namespace %s, it is %s: its message from queue %s was dropped here; if "
        "two services share that queue, give each its own (task_default_queue)",
        run.job_id,
        task.name,
        run.task_id,
        runtime_of(task.app).settings.namespace,
        where,
        (context.delivery_info or {}).get("routing_key"),
    )
