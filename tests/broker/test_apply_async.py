"""A task's own `apply_async`, and patches of Celery's, apply at the submit of a job (fault 10)."""

from datetime import timedelta
from typing import Any

import celery
import pytest
from celery import Celery

from jobhandle_celery import Job, JobStatus, ValidationError
from tests.broker.messages import Make, received

Task: Any = celery.Task


class Tenant(Task):  # type: ignore[misc]  # whose apply_async is declared with all its options
    """A service's base class, which adds options."""

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        options["headers"] = {**(options.get("headers") or {}), "tenant": "acme"}
        options.setdefault("queue", "of-acme")
        options.setdefault("priority", 3)
        options.setdefault("expires", 3600)
        return super().apply_async(args, {**(kwargs or {}), "extra": 1}, **options)


class Silent(Task):  # type: ignore[misc]  # untyped in its stubs
    """Publishes nothing, as celery-once and celery-singleton for a queued task."""

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        return self.AsyncResult("another's")


class Twice(Task):  # type: ignore[misc]  # untyped in its stubs
    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        super().apply_async(*args, **kwargs)
        return super().apply_async(*args, **kwargs)


class Renamed(Task):  # type: ignore[misc]  # untyped in its stubs
    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        return super().apply_async(*args, **{**kwargs, "task_id": "the same each time"})


class Locked(Task):  # type: ignore[misc]  # untyped in its stubs
    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        raise LookupError("it is queued already")


def minutes(span: timedelta) -> int:
    return round(span / timedelta(minutes=1))


def take(*_: Any, **__: Any) -> None: ...


@pytest.fixture
def app(make: Make) -> Any:
    app = make()
    for base in (Tenant, Silent, Twice, Renamed, Locked):
        app.task(name=base.__name__, base=base, shared=False)(take)
    return app


def test_option_of_base_class_is_in_row_and_every_message(app: Any, make: Make) -> None:
    handle = app.jobs.handle()
    handle.submit(app.tasks["Tenant"].s(5))
    (message,) = received(app, "of-acme")
    assert message.headers["tenant"] == "acme"
    assert message.properties["priority"] == 3
    job = handle.get_job()
    assert (job.queue, job.priority, job.kwargs) == ("of-acme", 3, {"extra": 1})
    assert minutes(job.expires - job.submitted) == 60
    assert "expiration" not in message.properties
    # Also from a service that does not have the class.
    handle.cancel_job()
    make().jobs.attach(handle.job_id).resubmit_job()
    (again,) = received(app, "of-acme")
    assert again.headers["tenant"] == "acme"


def test_callers_option_overrides_default_of_base_class(app: Any) -> None:
    app.jobs.submit_many([Job(task="Tenant", queue="mine", priority=9, expires=timedelta(minutes=1))] * 2)
    messages = received(app, "mine")
    assert [message.properties["priority"] for message in messages] == [9, 9]
    assert {minutes(job.expires - job.submitted) for job in app.jobs.find()} == {1}


def test_base_class_may_delay_a_job(app: Any) -> None:
    class Later(Task):  # type: ignore[misc]  # untyped in its stubs
        def apply_async(self, *args: Any, **kwargs: Any) -> Any:
            return super().apply_async(*args, **{**kwargs, "countdown": 600})

    app.task(name="later", base=Later, shared=False)(take)
    handle = app.jobs.handle()
    handle.submit(Job(task="later"))
    job = handle.get_job()
    assert (job.status, minutes(job.scheduled_for - job.submitted)) == (JobStatus.WAITING, 10)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("Silent", "it sent none"), ("Twice", "it sent 2"), ("Renamed", "keeps the task id")],
)
def test_apply_async_without_its_one_message_is_refused(app: Any, name: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        app.jobs.handle().submit(Job(task=name))
    with pytest.raises(ValidationError, match=reason):
        app.jobs.submit_many([Job(task="tests.add", args=[1, 2]), Job(task=name)])
    assert app.jobs.find() == []
    assert received(app) == []


def test_error_of_apply_async_is_raised_and_writes_nothing(app: Any) -> None:
    with pytest.raises(LookupError, match="queued already"):
        app.jobs.handle().submit(Job(task="Locked"))
    assert app.jobs.find() == []


def test_eager_job_has_options_of_base_class(make: Make) -> None:
    app = make(task_always_eager=True)
    seen = []

    @app.task(name="eager", base=Tenant, bind=True, shared=False)  # type: ignore[untyped-decorator]  # Celery's
    def eager(self: Any, **kwargs: Any) -> None:
        seen.append((self.request.headers["tenant"], self.request.tenant, kwargs))

    app.jobs.handle().submit(Job(task="eager"))
    assert seen == [("acme", "acme", {"extra": 1})]


@pytest.fixture(params=[(Task, "apply_async"), (Celery, "send_task")])
def traced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tool that patches a method of Celery to add a header to each message."""
    owner, name = request.param
    traces: list[str] = []
    original = getattr(owner, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        traces.append(f"trace-{len(traces)}")
        kwargs["headers"] = {**(kwargs.get("headers") or {}), "trace": traces[-1]}
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, patched)
    return traces


def test_header_of_patched_publishing_is_in_each_message(make: Make, traced: list[str]) -> None:
    app = make()
    app.jobs.submit_many([Job(task="tests.add", args=[1, number]) for number in range(3)])
    assert (
        [message.headers["trace"] for message in received(app)] == traced == ["trace-0", "trace-1", "trace-2"]
    )


def test_unregistered_task_passes_patched_send_task(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Celery.send_task

    def patched(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, "headers": {"trace": "abc"}})

    monkeypatch.setattr(Celery, "send_task", patched)
    app = make()
    app.jobs.handle().submit(Job(task="elsewhere.task"))
    (message,) = received(app)
    assert message.headers["trace"] == "abc"


def test_send_task_of_app_subclass_is_called(sqlite_url: str) -> None:
    from jobhandle_celery import Jobs

    class Own(Celery):
        def send_task(self, name: str, *args: Any, **kwargs: Any) -> Any:
            return super().send_task(name, *args, **{**kwargs, "priority": 8})

    app: Any = Own("own", broker="memory://", set_as_current=False)
    app.conf.task_default_queue = "own"
    with Jobs(app, sqlite_url).handle() as handle:
        handle.submit(Job(task="elsewhere.task"))
        assert handle.get_job().priority == 8
    app.jobs.close()


def test_other_task_sent_by_apply_async_is_published(make: Make) -> None:
    app = make()

    class Audited(Task):  # type: ignore[misc]  # untyped in its stubs
        def apply_async(self, *args: Any, **kwargs: Any) -> Any:
            self.app.send_task("audit", ["sent"])
            return super().apply_async(*args, **kwargs)

    app.task(name="audited", base=Audited, shared=False)(take)
    app.jobs.handle().submit(Job(task="audited"))
    assert [message.headers["task"] for message in received(app)] == ["audit", "audited"]
    assert len(app.jobs.find()) == 1


def test_plain_call_of_task_with_apply_async_is_unchanged(app: Any) -> None:
    app.tasks["Tenant"].delay(1)
    (message,) = received(app, "of-acme")
    assert "jobhandle" not in message.headers
    assert app.jobs.find() == []
