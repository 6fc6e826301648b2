"""Bodies that retry."""

import os
import signal
import time
from datetime import datetime
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Retry

from tests.apps import append_line
from tests.worker.base_app import app, task


@task(bind=True)
def retry_times(self: Any, path: str, times: int, countdown: float = 0) -> int:
    """Append the number of retries, retry `times` times, then return the number."""
    append_line(path, f"{self.request.retries}/{self.max_retries}")
    if self.request.retries < times:
        raise self.retry(countdown=countdown, max_retries=times)
    return int(self.request.retries)


@task(bind=True)
def retry_and_linger(self: Any, path: str, seconds: float) -> str:
    """Retry at once, and take a while to return."""
    append_line(path, f"begun {self.request.retries}")
    try:
        if self.request.retries == 0:
            raise self.retry(countdown=0)
    finally:
        time.sleep(seconds)
        append_line(path, f"left {self.request.retries}")
    return "done"


@task(bind=True, acks_late=True)
def retry_times_late(self: Any, path: str, times: int) -> int:
    append_line(path, f"{self.request.retries}")
    if self.request.retries < times:
        raise self.retry(countdown=0, max_retries=times)
    return int(self.request.retries)


@task(bind=True, max_retries=2, default_retry_delay=0)
def retry_for_ever(self: Any, path: str, with_reason: bool) -> None:
    append_line(path, f"{self.request.retries}")
    if with_reason:
        raise self.retry(exc=ValueError("at last"))
    raise self.retry()


@task(autoretry_for=(ValueError,), max_retries=2, default_retry_delay=0)
def autoretry(path: str) -> None:
    append_line(path, "begun")
    raise ValueError("every time")


class RegisteredAutoretry(Task):  # type: ignore[type-arg]  # not generic at run time
    name = "worker.registered_autoretry"
    autoretry_for = (ValueError,)
    max_retries = 2
    default_retry_delay = 0

    def run(self, path: str) -> None:
        append_line(path, "begun")
        raise ValueError("every time")


app.register_task(RegisteredAutoretry())


@task(bind=True, autoretry_for=(ValueError,), max_retries=3, retry_backoff=1, retry_jitter=False)
def autoretry_with_backoff(self: Any, path: str) -> str:
    append_line(path, "begun")
    if self.request.retries < 1:
        raise ValueError("the first time")
    return "second"


@task(bind=True)
def retry_with(self: Any, path: str, options: dict[str, Any]) -> Any:
    """Retry once, with the given options."""
    if self.request.retries:
        return {
            "path": path,
            "options": options,
            "queue": self.request.delivery_info["routing_key"],
            "limits": self.request.timelimit,
            "priority": self.request.delivery_info["priority"],
        }
    raise self.retry(**{"countdown": 0, **options})


@task(bind=True)
def retry_without_throw(self: Any, path: str, then: str) -> Any:
    append_line(path, f"{self.request.retries}")
    if self.request.retries:
        return "second"
    asked = self.retry(countdown=0, throw=False)
    match then:
        case "return":
            return "first"
        case "raise":
            raise ValueError("after asking")
        case "ignore":
            raise Ignore
        case "retry":
            raise asked
    raise AssertionError(then)


@task(bind=True)
def retry_at(self: Any, path: str, moment: datetime) -> str:
    append_line(path, "begun")
    if self.request.retries:
        return "second"
    raise self.retry(eta=moment)


@task(bind=True)
def retry_when_there(self: Any, path: str, sign: str) -> None:
    append_line(path, "begun")
    while not os.path.exists(sign):
        time.sleep(0.02)
    raise self.retry(countdown=0)


@task(bind=True)
def retry_with_nonsense(self: Any) -> None:
    raise self.retry(countdown=0, kwargs={"given": object()})


@task(bind=True)
def retry_then_die(self: Any, path: str) -> str:
    """Retry twice, then die, then finish."""
    append_line(path, "begun")
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    with open(path) as lines:
        if len(lines.readlines()) < 4:
            os.kill(os.getpid(), signal.SIGKILL)
    return "at last"


@task(bind=True)
def ask_again_with_other_arguments(self: Any, secret: str) -> int:
    if self.request.retries == 0:
        raise self.retry(args=[f"{secret}, again"], countdown=0)
    return len(secret)


@task()
def raise_retry_by_hand() -> None:
    raise Retry("raised by hand")


@task(bind=True)
def request_has_the_arguments(self: Any, given: str) -> bool:
    return bool(self.request.kwargs == {"given": given})


@task(bind=True)
def describe_request(self: Any) -> dict[str, Any]:
    request = self.request
    return {
        "retries": request.retries,
        "max_retries": self.max_retries,
        "eta": request.eta,
        "expires": request.expires,
        "is_eager": request.is_eager,
        "timelimit": request.timelimit,
        "called_directly": request.called_directly,
        "group": request.group,
        "ignore_result": request.ignore_result,
    }
