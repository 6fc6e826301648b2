"""A service under test: an app whose broker, result backend and database do not exist here.

Its tasks are not `shared`: apps of other tests in this process would have them.
"""

from typing import Any

from celery import Celery

from jobhandle_celery import Job, Jobs, current_job

NOWHERE = "127.0.0.1:1"
"""Nothing listens there."""

app = Celery("service", broker=f"redis://{NOWHERE}/0", backend=f"redis://{NOWHERE}/1", set_as_current=False)
jobs = Jobs(app, f"postgresql+psycopg://{NOWHERE}/service")

steps: list[Any] = []
"""What bodies note."""


@app.task(shared=False)
def add(x: int, y: int) -> int:
    return x + y


@app.task(shared=False)
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(shared=False)
def note(what: Any) -> Any:
    steps.append(what)
    return what


@app.task(shared=False)
def report(path: str) -> str:
    job = current_job()
    assert job is not None
    job.set_progress(1, 2)
    job.set_message(f"half of {path}")
    steps.append((path, job.get_job().username))
    return path


@app.task(shared=False)
def fail(text: str) -> None:
    raise KeyError(text)


@app.task(shared=False, bind=True, default_retry_delay=3600, max_retries=3)
def retry_until(self: Any, times: int) -> int:
    steps.append(self.request.retries)
    if self.request.retries < times:
        raise self.retry()
    return int(self.request.retries)


@app.task(shared=False)
def submit_another(what: Any) -> int:
    return jobs.submit(note.s(what), username="another")


@app.task(shared=False)
def submit_itself() -> int:
    return jobs.submit(Job(task="tests.testing.service.submit_itself"))


@app.task(shared=False)
def call(function: str) -> Any:
    """Call what a test has put there."""
    return functions[function]()


functions: dict[str, Any] = {}


@app.task(shared=False, durable=True)
def durable(number: int) -> int:
    steps.append(number)
    return 2 * number


@app.task(shared=False)
def plain(number: int) -> None:
    steps.append(("plain", number))
