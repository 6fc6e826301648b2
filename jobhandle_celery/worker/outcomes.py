"""How a run ends, as one frozen value: it can be written, handed to another process, or made plainer.

A database may refuse an outcome for good: its text, its size, a constraint. The body has run all the same, so
the row ends with a plainer outcome, whose text names what was left out.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from .. import internal_errors
from ..errors import DatabaseUnavailableError, SchemaError
from ..models import Failure
from ..runtime import DeferredWrite, Runtime
from ..serialization import to_ascii
from ..status import JobStatus
from ..store import Run, Store

logger = logging.getLogger(__name__)

TRUNCATED_LENGTH = 200
"""Characters that are kept of a message when the database refuses the full text."""

_ERROR_NOT_STORED = Failure("system", "OutcomeNotStored", "the error could not be stored")


@dataclass(frozen=True)
class Outcome:
    """How a run ends: one of the classes below."""

    run: Run

    def write(self, store: Store) -> Any:
        """Write it, plainer if the database refuses it; return what the store's method returns.

        Raises:
            DatabaseUnavailableError, SchemaError: not now; it may be written again, in any process.
            Exception: the database refuses the plainest form, too.
        """
        outcome = self
        while True:
            try:
                return outcome._write(store)
            except (DatabaseUnavailableError, SchemaError):
                raise
            except Exception as error:
                # A ValueError may be about a text that the driver cannot encode.
                if internal_errors.is_bug(error) and not isinstance(error, ValueError):
                    internal_errors.report("writing an outcome", error, "a plainer one is tried")
                outcome = outcome.plainer(error)

    def plainer(self, error: Exception) -> "Outcome":
        """Return the next plainer form of an outcome that the database refused; log what it leaves out.

        Raises:
            Exception: the given error, if there is no plainer form.
        """
        # The server's own text: SQLAlchemy's quotes the whole statement.
        cause = getattr(error, "orig", None) or error
        refusal = to_ascii(f"{type(error).__name__}: {cause}".strip())[:TRUNCATED_LENGTH]
        for plain, change in self._plainer(refusal):
            if plain != self:
                logger.warning(
                    "job %s: the database refused the outcome %s (%s); writing it %s",
                    self.run.job_id,
                    type(self).__name__,
                    refusal,
                    change,
                )
                return plain
        raise error

    def _write(self, store: Store) -> Any:
        raise NotImplementedError

    def _plainer(self, refusal: str) -> list[tuple["Outcome", str]]:
        """Return plainer forms, in order, and what each changes; one that this has already is passed over."""
        raise NotImplementedError

    def _with_plainer(self, name: str) -> list[tuple["Outcome", str]]:
        words: str = getattr(self, name)
        plainer: dict[str, dict[str, Any]] = {
            "as ASCII": {name: to_ascii(words)},
            f"cut at {TRUNCATED_LENGTH} characters": {name: words[:TRUNCATED_LENGTH]},
        }
        return [(replace(self, **changed), change) for change, changed in plainer.items()]


@dataclass(frozen=True)
class Finished(Outcome):
    """The body returned."""

    result: str
    """JSON text."""
    ignored: bool = False
    """The row keeps the result only if another job may get it."""

    def _write(self, store: Store) -> bool:
        return store.runs.finish(self.run, self.result, ignored=self.ignored)

    def _plainer(self, refusal: str) -> list[tuple[Outcome, str]]:
        message = f"the body returned, and its result could not be stored: {refusal}"
        return [(Failed(self.run, Failure("system", "ResultNotStored", message)), "without its result")]


@dataclass(frozen=True)
class Failed(Outcome):
    """The body, or what surrounds it, failed."""

    failure: Failure

    def _write(self, store: Store) -> bool:
        return store.runs.fail(self.run, self.failure)

    def _plainer(self, refusal: str) -> list[tuple[Outcome, str]]:
        kind, *words = self.failure.kind, self.failure.type, self.failure.message, self.failure.traceback
        plainer = {
            "as ASCII": Failure(kind, *map(to_ascii, words)),
            f"cut at {TRUNCATED_LENGTH} characters, without its traceback": Failure(
                kind, words[0][:TRUNCATED_LENGTH], words[1][:TRUNCATED_LENGTH]
            ),
            "without message and traceback": _ERROR_NOT_STORED,
        }
        return [(Failed(self.run, failure), change) for change, failure in plainer.items()]


@dataclass(frozen=True)
class Retried(Outcome):
    """The body asked for a retry."""

    signature: str
    """The next message, as JSON text."""
    queue: str | None
    delay: float | datetime | None
    """Seconds, or the moment; None: at once."""
    reason: str

    def _write(self, store: Store) -> JobStatus | None:
        return store.runs.retry(self.run, self.signature, self.queue, self.delay, self.reason)

    def _plainer(self, refusal: str) -> list[tuple[Outcome, str]]:
        message = f"the retry could not be stored: {refusal}"
        failed = Failed(self.run, Failure("system", "RetryNotStored", message))
        return [*self._with_plainer("reason"), (failed, "as an Error")]

    def is_due(self, written: object) -> bool:
        """Return True if its next message is to be published at once, after this answer of the store."""
        return written is JobStatus.REQUEUED and self.delay is None


@dataclass(frozen=True)
class Cancelled(Outcome):
    """The body stopped because it was asked to."""

    message: str
    """Empty: the job keeps its message."""

    def _write(self, store: Store) -> bool:
        return store.runs.stop(self.run, self.message)

    def _plainer(self, refusal: str) -> list[tuple[Outcome, str]]:
        return self._with_plainer("message")


@dataclass(frozen=True)
class GivenBack(Outcome):
    """The run ended before its work was done, and the job is to run again."""

    reason: str

    def _write(self, store: Store) -> Any:
        return store.recovery.give_back(self.run, self.reason, self.run.worker)

    def _plainer(self, refusal: str) -> list[tuple[Outcome, str]]:
        return self._with_plainer("reason")


def is_cancelled(outcome: Outcome, written: object) -> bool:
    """Return True if, by this answer of the store, the outcome left the job Cancelled."""
    return written is JobStatus.CANCELLED or (bool(written) and isinstance(outcome, Cancelled))


REFUSALS = 3
"""Connections broken by an outcome, while others work, after which it is written in a plainer form."""


def take_over(runtime: Runtime, outcome: Outcome, report: Callable[[Outcome, Any], object]) -> None:
    """Let housekeeping write the outcome of a child, and call `report` with the store's answer."""
    latest, refusals = outcome, 0

    def write() -> object:
        return report(latest, latest.write(runtime.store))

    def refused(error: DatabaseUnavailableError) -> None:
        # Only this write breaks its connection, repeatedly: a server does so for a packet that is too large.
        nonlocal latest, refusals
        refusals += error.retry == "immediately"
        if refusals >= REFUSALS:
            latest = latest.plainer(error)

    runtime.deferred_writes.put(
        DeferredWrite(outcome.run.job_id, outcome.run.task_id, write, refused=refused)
    )


def log_superseded(outcome: Outcome, written: object) -> object:
    """Log that an outcome was not written, if its run does not hold the row any more; return the answer."""
    if not written:
        logger.warning(
            "job %s: outcome %s of attempt %s is dropped: another attempt, or a status set by hand, has "
            "superseded it; if its status was not set by hand, look in this worker's log for a lease that "
            "expired",
            outcome.run.job_id,
            type(outcome).__name__,
            outcome.run.attempt,
        )
    return written


@dataclass(frozen=True)
class Report:
    """What the process of a body reports to its main process.

    Celery's pool passes a tuple (failed, retval, runtime) to the main process; the third field is reused.
    """

    runtime: float | None
    unwritten: Outcome | None = None
    """An outcome that this process could not write; the main process writes it."""
    revoked: str | None = None
    """Why the task is revoked, ``"revoked"`` or ``"expired"``; None if it is not."""
