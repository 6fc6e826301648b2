"""What can go wrong, as one tree. Imports nothing of ours.

::

    JobHandleError                     everything this library raises for an expected reason
    ├── ApiUsageError (ValueError)     the call itself is wrong: an unknown word, not a job
    ├── ValidationError (ValueError)   a value was understood and refused; names the field
    ├── NotAttachedError (RuntimeError)   the handle has no job yet: submit or attach first
    ├── HandleClosedError (RuntimeError)  the handle was closed
    ├── UnknownJobError (LookupError)  no such job, or not yours
    ├── InvalidTransitionError         the job is not in a status that allows this move
    ├── JobFailedError                 result(): the job ended in Error; carries the Failure
    ├── JobCancelledError              result(): the job was cancelled
    ├── WaitTimeoutError (TimeoutError)
    ├── ConfigurationError             settings are missing or contradict each other
    ├── SchemaError                    the tables are missing, old or newer than this code
    ├── DatabaseRefusedError           the database refused a statement for good: asking again will not help
    └── DatabaseUnavailableError (ConnectionError)

    JobCancelled (BaseException)       raised in a body by raise_if_cancelled()
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
    """Return how a value looks in an error: short, whatever it is, and however deep, long or hostile."""
    return _repr.repr(value)[:400]


def _made_anew(kind: type[Exception], args: tuple[Any, ...], attributes: dict[str, Any]) -> Exception:
    """Make an error that another process has pickled: a pool's child, say."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class JobHandleError(Exception):
    """The root of all errors of this library."""


class ApiUsageError(JobHandleError, ValueError):
    """The call is wrong in itself, whatever the state of any job."""


class ValidationError(JobHandleError, ValueError):
    """A value was refused before anything was written.

    Attributes:
        field: The name of the parameter or of the `Job` field.
    """

    def __init__(self, field: str, value: object, accepted: str) -> None:
        super().__init__(f"{field}: {shown(value)} was refused; accepted: {accepted}")
        self.field = field

    def __reduce__(self) -> tuple[Any, ...]:
        # By its text: the value, which may be a secret, or one that no pickle takes, is not in it.
        return _made_anew, (type(self), self.args, {"field": self.field})


class NotAttachedError(JobHandleError, RuntimeError):
    """The handle was not given a job yet: call ``submit`` or ``attach`` first."""


class HandleClosedError(JobHandleError, RuntimeError):
    """The handle was closed; its job was not touched by that."""


class UnknownJobError(JobHandleError, LookupError):
    """There is no job of that id for the user of this handle."""


class InvalidTransitionError(JobHandleError):
    """The job's status does not allow that move; nothing was written."""


class JobFailedError(JobHandleError):
    """The job whose result was asked for ended in Error.

    Attributes:
        job_id: Which job.
        failure: What is known of it, as data.
    """

    def __init__(self, job_id: int, failure: "Failure") -> None:
        super().__init__(f"job {job_id} failed: {failure.type}: {failure.message}")
        self.job_id = job_id
        self.failure = failure

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.job_id, self.failure)


class JobCancelledError(JobHandleError):
    """The job whose result was asked for was cancelled."""


class WaitTimeoutError(JobHandleError, TimeoutError):
    """The job was not final within the time given; it goes on."""


class ConfigurationError(JobHandleError):
    """Settings are missing, malformed, or contradict each other."""


class SchemaError(JobHandleError):
    """The tables in the database do not fit this version of the library; says what to run."""


class DatabaseRefusedError(JobHandleError):
    """The database refused a statement for what is in it; nothing was written, and a repeat will not help."""


class DatabaseUnavailableError(JobHandleError, ConnectionError):
    """The database cannot be asked just now; whether the last statement took effect is not known."""

    again: Literal["at once", "soon"] | None = None
    """When the library itself asks again before anybody hears of this: a connection broke, or a deadlock."""


class StopRequested(BaseException):
    """Raised in a body that was asked to stop.

    Not an `Exception`, as asyncio's is not, so that neither ``except Exception`` nor Celery's
    ``autoretry_for`` swallows a stop. Its text, if it has one, becomes the job's message.
    """
