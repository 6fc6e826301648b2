"""Durable job handles for Celery.

The message is only a wake-up; the row is the truth. See `Jobs`, `JobHandle`, and the README.
"""

from .errors import (
    ApiUsageError,
    ConfigurationError,
    DatabaseUnavailableError,
    HandleClosedError,
    InvalidTransitionError,
    JobCancelled,
    JobCancelledError,
    JobFailedError,
    JobHandleError,
    NotAttachedError,
    SchemaError,
    UnknownJobError,
    ValidationError,
    WaitTimeoutError,
)
from .handle import JobHandle
from .jobs import Jobs
from .model import Event, Failure, Job, Progress
from .status import JobStatus
from .task import current_job

__version__ = "0.1.0"

__all__ = [
    "ApiUsageError",
    "ConfigurationError",
    "DatabaseUnavailableError",
    "Event",
    "Failure",
    "HandleClosedError",
    "InvalidTransitionError",
    "Job",
    "JobCancelled",
    "JobCancelledError",
    "JobFailedError",
    "JobHandle",
    "JobHandleError",
    "JobStatus",
    "Jobs",
    "NotAttachedError",
    "Progress",
    "SchemaError",
    "UnknownJobError",
    "ValidationError",
    "WaitTimeoutError",
    "current_job",
]
