"""What a worker does for a member of a tree after its claim and before its body.

It reads the results of the job's needs and puts them before its arguments. The message does not carry them:
the results of a chord's header would make it arbitrarily large. The hooks of the task, the signals and the
body get the same arguments as from Celery's canvas.

It makes the nodes above the member Running. This is not part of the claim, which must not wait for the row of
a node, shared by all its members. It may fail: the settle of the member repeats it.
"""

import logging
import math
import time
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded

from .. import internal_errors, serialization
from ..broker.headers import lacks_results, node_of, put_results
from ..errors import DatabaseUnavailableError, JobHandleError
from ..runtime import Runtime
from ..serialization import LIMIT, NotStorableError
from ..store import ResultNotKept, ResultsTooLarge, Store, limit_retries
from .current_run import ArgumentsError, CurrentRun

logger = logging.getLogger(__name__)

READ_TIMEOUT = 30.0
"""Seconds for which the read is retried while the database is away; then the job is given back."""

SIZES_SHOWN = 5

MAX_REMEMBERED = 10_000
"""Nodes that a process remembers as started: further members of these execute no statement."""

RETRY_FOR = 1.0
"""Seconds for which the statement is retried; the body waits for it."""


def complete_arguments(store: Store, current: CurrentRun) -> None:
    """Put the results of a job's needs before its arguments; mark it `unstartable` if that is not possible.

    Raises:
        JobHandleError: the results could not be read.
    """
    if not lacks_results(current.context):
        return
    try:
        texts = _read(store, current)
        results = [_decoded(needed, text) for needed, text in texts.items()]
        _check([*results, *current.context.args], texts)
    except ArgumentsError as error:
        current.unstartable = error
    else:
        put_results(current.context, results)


def _read(store: Store, current: CurrentRun) -> dict[int, str | None]:
    job_id = current.run.job_id
    # An eager run cannot be given back: there is no main process that would write it.
    deadline = math.inf if current.context.is_eager else time.monotonic() + READ_TIMEOUT
    pause, logged = 0.1, False
    while True:
        try:
            return store.queries.results_needed(job_id, LIMIT)
        except ResultNotKept as error:
            raise ArgumentsError(
                f"the result of job {error.job_id}, an argument of this job, was not kept: its task ignores "
                "its result (ignore_result), and returned what is not JSON"
            ) from None
        except ResultsTooLarge as error:
            raise ArgumentsError(
                f"its arguments must be JSON of at most {LIMIT:,} bytes; "
                f"the results that it needs are {error}"
            ) from None
        except DatabaseUnavailableError as error:
            if time.monotonic() >= deadline:
                raise
            if not logged:
                logger.warning(
                    "job %s: reading the results that it needs waits for the database: %s", job_id, error
                )
            logged = True
        time.sleep(pause)
        pause = min(pause * 2, 2.0)


def _decoded(needed: int, text: str | None) -> Any:
    if text is None:
        raise ArgumentsError(
            f"the result of job {needed}, an argument of this job, is gone: that job was pruned"
        )
    try:
        return serialization.decode(text)
    except Exception as error:
        raise ArgumentsError(
            f"the result of job {needed}, an argument of this job, cannot be read: {type(error).__name__}"
        ) from None


def _check(args: list[Any], texts: dict[int, str | None]) -> None:
    """Check that the arguments could be stored, as those of a submitted job are: a retry stores them."""
    try:
        serialization.encode(args)
    except NotStorableError as error:
        sizes = [f"job {needed}: {len(text or ''):,} bytes" for needed, text in texts.items()]
        if len(sizes) > SIZES_SHOWN:
            sizes[SIZES_SHOWN:] = [f"{len(sizes) - SIZES_SHOWN} more"]
        raise ArgumentsError(
            f"its arguments, with the results of what it needs ({', '.join(sizes)}), must be JSON of at most "
            f"{LIMIT:,} bytes; this {error}"
        ) from None


def start_nodes(runtime: Runtime, current: CurrentRun) -> None:
    """Make the nodes above a member Running, unless this process has done so for its node.

    A resubmit of the root begins another round, in which its nodes are not Running. So the process relies on
    what it remembers only if the message is certainly of the first round.
    """
    place = node_of(current.context)
    if place is None:
        return
    node_id, is_first = place
    if is_first and node_id in runtime.started_nodes:
        return
    job_id = current.run.job_id
    try:
        with limit_retries(RETRY_FOR):
            runtime.store.settling.start_ancestors(job_id, f"worker {current.run.worker.name}")
    except SoftTimeLimitExceeded:
        raise
    except JobHandleError as error:
        logger.warning(
            "job %s: its chain, group or chord is not shown as Running yet: %s",
            job_id,
            error,
        )
    except Exception as error:
        internal_errors.report("starting a tree", error, f"the end of job {job_id} repeats it")
    else:
        if len(runtime.started_nodes) >= MAX_REMEMBERED:
            runtime.started_nodes.clear()
        runtime.started_nodes.add(node_id)
