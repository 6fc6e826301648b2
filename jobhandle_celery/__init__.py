"""Durable job handles for Celery.

The message is only a wake-up; the row is the truth. Start with `Jobs` and `JobHandle`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .async_handle import AsyncJobHandle
    from .durable.results import JobResult
    from .errors import (
        ApiUsageError,
        ConfigurationError,
        DatabaseRefusedError,
        DatabaseUnavailableError,
        HandleClosedError,
        InvalidTransitionError,
        JobCancelledError,
        JobFailedError,
        JobHandleError,
        NotAttachedError,
        SchemaError,
        StopRequested,
        UnknownJobError,
        ValidationError,
        WaitTimeoutError,
    )
    from .handle import JobHandle
    from .jobs import Jobs
    from .models import Event, Failure, Job, JobRecord, Progress
    from .status import JobStatus
    from .worker.executor import current_job

__version__ = "0.1.0"

__all__ = [
    "ApiUsageError",
    "AsyncJobHandle",
    "ConfigurationError",
    "DatabaseRefusedError",
    "DatabaseUnavailableError",
    "Event",
    "Failure",
    "HandleClosedError",
    "InvalidTransitionError",
    "Job",
    "JobCancelledError",
    "JobFailedError",
    "JobHandle",
    "JobHandleError",
    "JobRecord",
    "JobResult",
    "JobStatus",
    "Jobs",
    "NotAttachedError",
    "Progress",
    "SchemaError",
    "StopRequested",
    "UnknownJobError",
    "ValidationError",
    "WaitTimeoutError",
    "current_job",
]

_MODULES = {
    "AsyncJobHandle": "async_handle",
    "Event": "models",
    "Failure": "models",
    "Job": "models",
    "JobRecord": "models",
    "JobHandle": "handle",
    "JobResult": "durable.results",
    "JobStatus": "status",
    "Jobs": "jobs",
    "Progress": "models",
    "current_job": "worker.executor",
}
"""The modules of the names that are not in ``errors``."""


if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        # Imported at first use, as in Celery's own package: importing this one does not import SQLAlchemy.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{_MODULES.get(name, 'errors')}", __name__), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
