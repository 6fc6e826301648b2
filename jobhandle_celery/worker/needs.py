"""What follows the claim of a job with needs: their results go before its arguments.

The message does not carry them: the header of a chord would make a message of any size. They are read here,
so that the task's hooks, signals and body find the arguments that Celery's canvas would have passed.
"""

import logging
import math
import time
from typing import Any

from .. import serialization
from ..broker.headers import lacks_results, put_results
from ..errors import DatabaseUnavailableError
from ..serialization import LIMIT, NotStorableError
from ..store import ResultsTooLarge, Store
from .current_run import ArgumentsError, CurrentRun

logger = logging.getLogger(__name__)

READ_TIMEOUT = 30.0
"""Seconds for which the read retries while the database is away; then the job is given back."""

SIZES_SHOWN = 5


def complete_arguments(store: Store, current: CurrentRun) -> None:
    """Put the results of what a job needs before its arguments; if they do not fit, it is `unstartable`.

    Raises:
        JobHandleError: they could not be read.
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
    # No other process would write that an eager run is given back.
    deadline = math.inf if current.context.is_eager else time.monotonic() + READ_TIMEOUT
    pause = 0.1
    while True:
        try:
            return store.queries.results_needed(job_id, LIMIT)
        except ResultsTooLarge as error:
            raise ArgumentsError(
                f"its arguments must be JSON of at most {LIMIT:,} bytes; "
                f"the results that it needs are {error}"
            ) from None
        except DatabaseUnavailableError as error:
            if time.monotonic() >= deadline:
                raise
            logger.warning("job %s: the results that it needs wait for the database: %s", job_id, error)
        time.sleep(pause)
        pause = min(pause * 2, 2.0)


def _decoded(needed: int, text: str | None) -> Any:
    if text is None:
        raise ArgumentsError(
            f"the result of job {needed}, an argument of this one, is gone: the job was pruned"
        )
    try:
        return serialization.decode(text)
    except Exception as error:
        raise ArgumentsError(
            f"the result of job {needed}, an argument of this one, cannot be read: {type(error).__name__}"
        ) from None


def _check(args: list[Any], texts: dict[int, str | None]) -> None:
    """Check that the arguments could be those of a submitted job: a retry of this one stores them."""
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
