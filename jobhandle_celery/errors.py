"""The errors of this library, as one tree::

    JobHandleError                            everything this library raises for an expected reason
    ├── ApiUsageError (ValueError)            the call is wrong: an unknown word, not a job
    │   ├── ValidationError                   a value was refused; names the field
    │   ├── NotAttachedError (RuntimeError)   the handle has no job: call submit or attach first
    │   ├── HandleClosedError (RuntimeError)  the handle was closed
    │   └── UnknownJobError (LookupError)     no job of that id for this user
    ├── InvalidTransitionError                the job's status does not allow this move
    ├── JobFailedError                        result(): the job ended in Error; carries the Failure
    ├── JobCancelledError                     result(): the job was cancelled
    ├── WaitTimeoutError (TimeoutError)       the job is not final yet
    ├── ConfigurationError                    settings are missing or contradict each other
    ├── SchemaError                           the tables are missing, old, or newer than this code
    ├── DatabaseRefusedError                  the database refused a statement; a repeat will not help
    └── DatabaseUnavailableError (ConnectionError)

    StopRequested (BaseException)             raised in a body by raise_if_cancelled()

As in OMERO, whose services raise an ApiUsageException for a wrong call and for an unknown id.
"""

import reprlib
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .models import Failure


UPGRADE_HINT = "Run `jobs.upgrade_schema()`, or `celery -A app jobs upgrade`."


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python spells no int of more than some thousand digits
            return f"<an int of {x.bit_length():,} bits>"


_repr = _Short()
_repr.maxstring = _repr.maxother = _repr.maxlong = 200


def shown(value: object) -> str:
    """Return a short representation of a value, however deep, long or hostile it is."""
    return _repr.repr(value)[:400]


def _made_anew(kind: type[Exception], args: tuple[Any, ...], attributes: dict[str, Any]) -> Exception:
    """Unpickle an error of another process."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class JobHandleError(Exception):
    """The root of all errors of this library."""


class ApiUsageError(JobHandleError, ValueError):
    """The call is wrong, whatever the status of the job."""


class ValidationError(ApiUsageError):
    """A value was refused before anything was written.

    Attributes:
        field: The name of the parameter or of the `Job` field.
    """

    def __init__(self, field: str, value: object, accepted: str) -> None:
        super().__init__(f"{field}: {shown(value)} was refused; accepted: {accepted}")
        self.field = field

    def __reduce__(self) -> tuple[Any, ...]:
        # The value is left out: it may be a secret, or not picklable.
        return _made_anew, (type(self), self.args, {"field": self.field})


class NotAttachedError(ApiUsageError, RuntimeError):
    """The handle has no job: call ``submit`` or ``attach`` first."""


class HandleClosedError(ApiUsageError, RuntimeError):
    """The handle was closed, which did not change its job."""


class UnknownJobError(ApiUsageError, LookupError):
    """There is no job of that id, or it belongs to another user."""


class InvalidTransitionError(JobHandleError):
    """The job's status does not allow that move; nothing was written."""


class JobFailedError(JobHandleError):
    """``result()``: the job ended in Error; `failure` has the reason as data."""

    def __init__(self, job_id: int, failure: "Failure") -> None:
        super().__init__(f"job {job_id} failed: {failure.type}: {failure.message}")
        self.job_id = job_id
        self.failure = failure

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.job_id, self.failure)


class JobCancelledError(JobHandleError):
    """``result()``: the job was cancelled."""


class WaitTimeoutError(JobHandleError, TimeoutError):
    """The job was not final within the timeout; it continues."""


class ConfigurationError(JobHandleError):
    """Settings are missing, malformed, or contradict each other."""


class SchemaError(JobHandleError):
    """The tables do not fit this version of the library; the message says what to run."""


class DatabaseRefusedError(JobHandleError):
    """The database refused a statement for its values; nothing was written, and a repeat will not help."""


class DatabaseUnavailableError(JobHandleError, ConnectionError):
    """The database is unavailable; whether the last statement took effect is unknown."""

    retry: Literal["immediately", "after_pause"] | None = None
    """How the library retries before it raises this: after a broken connection immediately, after a deadlock
    or a lock timeout after a pause."""


class StopRequested(BaseException):
    """Ends a body that was asked to stop.

    A `BaseException`, as asyncio's ``CancelledError`` is, so that neither ``except Exception`` nor Celery's
    ``autoretry_for`` swallows a stop. Its text, if any, becomes the job's message.
    """
