"""Checks of the app's configuration, as this process reads it."""

from collections.abc import Iterator
from datetime import timedelta

from celery.concurrency import ALIASES  # type: ignore[attr-defined]  # not in its stubs
from kombu.serialization import prepare_accept_content

from ...worker.celery_bookkeeping import limits_ignored
from ..formatting import span
from .findings import Finding, Patient, bad, ok, unknown, warn

SHORT = timedelta(seconds=10)
"""A machine under load, or one that is moved, may pause for some seconds."""

JSON, SIGNED, PICKLE = "application/json", "application/data", "application/x-python-serialize"


def lease(patient: Patient) -> Finding:
    """Look whether a worker can renew its lease in time, and outlive a pause."""
    lease, took = patient.settings.lease, patient.database
    if isinstance(took, float) and took * 12 > lease.total_seconds():
        return bad(
            f"a lease of {span(lease)} with a database that takes {span(took)} to answer: "
            "workers that are well are taken for lost",
            "a longer jobhandle_lease",
        )
    if lease < SHORT:
        return warn(
            f"a lease of {span(lease)}: a machine that pauses for so long loses its jobs",
            "jobhandle_lease = 60, unless tests are all that runs",
        )
    return ok(
        f"a lease of {span(lease)}: a lost worker's jobs are settled within {span(lease * 2)} and a sweep"
    )


def prefetch(patient: Patient) -> Finding:
    """Look how many messages a busy worker keeps from others."""
    given, wait = patient.conf.worker_prefetch_multiplier, span(patient.settings.republish_after)
    if given == 1:
        return ok("worker_prefetch_multiplier is 1: a worker takes what it can run next")
    kept = "any number of messages" if not given else f"{given} messages for each of its processes"
    said = (
        f"a busy worker keeps {kept} from idle ones; after jobhandle_republish_after ({wait}) another is sent"
    )
    hint = "worker_prefetch_multiplier = 1, if bodies take seconds or more"
    return ok(said, hint) if given else warn(said, hint)


def results(patient: Patient) -> Finding:
    """Look at the result backend, which jobs do not need: their results are in the rows."""
    if not patient.conf.result_backend:
        return ok("no result_backend: results of jobs are in their rows")
    error = patient.backend
    name = type(patient.app.backend).__name__
    if error is not None:
        return warn(
            f"the result backend ({name}) does not answer ({error}): workers wait for it after each body",
            "result_backend = None, if nobody reads it: results of jobs are in their rows",
        )
    return ok(f"the result backend ({name}) answers; results of jobs are in their rows as well")


def serializers(patient: Patient) -> Iterator[Finding]:
    """Look whether workers accept what jobs are sent as, and nothing that runs code."""
    try:
        accepted = prepare_accept_content(patient.conf.accept_content or []) or set()
    except Exception as error:
        yield unknown(f"accept_content cannot be read: {error}", "accept_content = ['json']")
        return
    signed = patient.conf.task_serializer == "auth"
    needed, word = (SIGNED, "auth") if signed else (JSON, "json")
    if needed not in accepted:
        yield bad(
            f"accept_content has no {word}, which jobs are sent as: workers refuse every job",
            f"accept_content = ['{word}']",
        )
    elif PICKLE in accepted:
        yield warn(
            "accept_content has pickle: whoever reaches the broker runs code in the workers; jobs need none",
            f"accept_content = ['{word}']",
        )
    else:
        yield ok(f"jobs are sent as {word}, which is accepted")


def events(patient: Patient) -> Iterator[Finding]:
    """Look whether Flower hears of jobs."""
    if patient.conf.worker_send_task_events:
        yield ok("workers send task events: Flower sees jobs run")
    else:
        yield warn(
            "worker_send_task_events is off: Flower sees no job, unless workers are started with -E",
            "worker_send_task_events = True",
        )
    if patient.conf.task_send_sent_event:
        yield ok("task_send_sent_event is on: Flower sees jobs that no worker has taken yet")
    else:
        yield warn(
            "task_send_sent_event is off: Flower sees a job only when a worker has taken it",
            "task_send_sent_event = True",
        )


def eager(patient: Patient) -> Finding:
    """Look whether jobs run in workers at all."""
    if patient.conf.task_always_eager:
        return bad(
            "task_always_eager: every submit runs its job itself, under no lease", "task_always_eager = False"
        )
    return ok("jobs are sent to workers, none runs in its submitter")


def limits(patient: Patient) -> Finding:
    """Look whether the pool that workers are configured for keeps time limits."""
    name = str(patient.conf.worker_pool)
    ignored = limits_ignored({str(ALIASES.get(name, name)).partition(":")[0]})
    if ignored:
        return warn(
            f"the {name} pool keeps no {' and no '.join(ignored)} time limit, of a job or of its task",
            "worker_pool = 'prefork', for jobs with time limits",
        )
    return ok(f"the {name} pool keeps time limits")


def pool(patient: Patient) -> Finding:
    """Look whether a prefork worker's children know of jobs."""
    method = getattr(patient.conf, "worker_pool_start_method", None) or "fork"
    if method != "fork":
        return bad(
            f"worker_pool_start_method is {method}: workers refuse to start",
            "worker_pool_start_method = 'fork'",
        )
    return ok("children of a prefork worker are forked, and know of jobs")
