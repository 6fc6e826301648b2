"""Each operation of a handle, as a call."""

from collections.abc import Callable

from jobhandle_celery import (
    JobHandle,
)

OPERATIONS: dict[str, Callable[[JobHandle], object]] = {
    "get_job": lambda handle: handle.get_job(),
    "job_status": lambda handle: handle.job_status(),
    "job_finished": lambda handle: handle.job_finished(),
    "job_message": lambda handle: handle.job_message(),
    "job_running": lambda handle: handle.job_running(),
    "job_error": lambda handle: handle.job_error(),
    "cancel_job": lambda handle: handle.cancel_job(),
    "set_status": lambda handle: handle.set_status("Running"),
    "set_status, not settable": lambda handle: handle.set_status("Queued"),
    "set_message": lambda handle: handle.set_message("a"),
    "set_message of none": lambda handle: handle.set_message(None),
    "set_status_and_message": lambda handle: handle.set_status_and_message("Running", "a"),
    "job_id": lambda handle: handle.job_id,
    "events": lambda handle: handle.events(),
    "wait": lambda handle: handle.wait(0),
    "result": lambda handle: handle.result(0),
    "set_progress": lambda handle: handle.set_progress(1, 2),
    "cancel_requested": lambda handle: handle.cancel_requested(),
    "raise_if_cancelled": lambda handle: handle.raise_if_cancelled(),
    "resubmit_job": lambda handle: handle.resubmit_job(),
    "release_job": lambda handle: handle.release_job(),
}
