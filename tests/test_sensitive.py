"""Sensitive arguments, without a worker: where they are hidden, and where the values stay."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from billiard.exceptions import WorkerLostError
from celery import Celery
from celery.contrib.testing.mocks import TaskMessage

from jobhandle_celery import Job, Jobs, JobStatus, ValidationError
from jobhandle_celery.broker import messages
from jobhandle_celery.broker.headers import job_headers
from jobhandle_celery.redaction import masked, resolved

CANARY = "canary-7f3a"
QUEUE = "parked"


@pytest.fixture
def app(sqlite_url: str, redis_url: str) -> Iterator[Celery]:
    app = Celery("sensitive", broker=redis_url, set_as_current=False)

    @app.task(name="login", shared=False)
    def login(user: str, password: str, *more: str, **options: Any) -> str:
        return user

    @app.task(name="guarded", shared=False, sensitive=["token"])
    def guarded(token: str) -> None: ...

    Jobs(app, sqlite_url)
    yield app
    app.jobs.close()  # type: ignore[attr-defined]  # made by Jobs
    app.close()


def taken(app: Celery, count: int) -> list[Any]:
    """Take `count` messages out of the queue."""
    with app.connection_for_read() as connection:
        channel: Any = connection.default_channel
        return [channel.basic_get(QUEUE) for _ in range(count)]


def sent(app: Celery, job: Any) -> tuple[dict[str, Any], str]:
    """Submit, and return the headers of the message and the repr of the job that is read back."""
    with app.jobs.handle() as handle:  # type: ignore[attr-defined]  # made by Jobs
        handle.submit(job)
        found = handle.get_job()
        assert CANARY in json.dumps([found.args, found.kwargs]), "the owner reads the values"
    [message] = taken(app, 1)
    assert CANARY in json.dumps(json.loads(message.body)), "the body needs the values"
    assert CANARY not in json.dumps(message.headers)
    assert CANARY not in repr(found)
    return message.headers, repr(found)


def test_keyword_is_hidden(app: Celery) -> None:
    headers, shown = sent(
        app,
        Job(task="login", args=["ann"], kwargs={"password": CANARY}, sensitive=["password"], queue=QUEUE),
    )
    assert headers["argsrepr"] == "('ann',)"
    assert headers["kwargsrepr"].endswith("'password': '***'}")
    assert headers["kwargsrepr"].startswith("{'job_id': ")
    assert "kwargs={'password': '***'}" in shown
    assert "args=('ann',)" in shown


def test_argument_hidden_by_name_is_hidden_by_position(app: Celery) -> None:
    headers, shown = sent(
        app, Job(task="login", args=["ann", CANARY, "x"], sensitive=["password"], queue=QUEUE)
    )
    assert headers["argsrepr"] == "('ann', '***', 'x')"
    assert "args=('ann', '***', 'x')" in shown


def test_position_is_hidden(app: Celery) -> None:
    headers, _ = sent(app, Job(task="login", args=["ann", CANARY], sensitive=[1], queue=QUEUE))
    assert headers["argsrepr"] == "('ann', '***')"


def test_unknown_tasks_positional_arguments_are_all_hidden(app: Celery) -> None:
    headers, _ = sent(app, Job(task="elsewhere", args=["ann", CANARY], sensitive=["password"], queue=QUEUE))
    assert headers["argsrepr"] == "('***', '***')"


def test_signature_names_them(app: Celery) -> None:
    options: dict[str, Any] = {"sensitive": ["password"], "queue": QUEUE}
    signature = app.tasks["login"].s("ann", password=CANARY).set(**options)
    headers, _ = sent(app, signature)
    assert "'password': '***'" in headers["kwargsrepr"]


def test_task_names_them_for_all_its_callers(app: Celery) -> None:
    headers, _ = sent(app, app.tasks["guarded"].s(CANARY).set(queue=QUEUE))
    assert headers["argsrepr"] == "('***',)"


def test_resubmit_and_a_sweep_hide_them_too(app: Celery, sqlite_url: str) -> None:
    jobs: Jobs = app.jobs  # type: ignore[attr-defined]  # made by Jobs
    job = Job(task="login", args=["ann", CANARY], sensitive=["password"], queue=QUEUE)
    with jobs.handle() as handle:
        handle.submit(job)
        handle.cancel_job()
        handle.resubmit_job()
        assert handle.get_job().sensitive == ("password", 1)
    # A publisher that does not know the task publishes one, too.
    other = Celery("other", broker=app.conf.broker_url, set_as_current=False)
    others = Jobs(other, sqlite_url)
    try:
        with others.handle() as handle:
            handle.submit(
                Job(
                    task="login",
                    args=["ann", CANARY],
                    sensitive=["password"],
                    status=JobStatus.WAITING,
                    queue=QUEUE,
                )
            )
            handle.release_job()
    finally:
        others.close()
        other.close()
    assert CANARY not in json.dumps([message.headers for message in taken(app, 3)])


@pytest.mark.parametrize(
    "job",
    [
        Job(task="login", args=["ann", CANARY + "\0"], sensitive=["password"]),
        Job(task="login", args=["ann", {CANARY: object()}], sensitive=["password"]),
        Job(task="login", kwargs={"password": CANARY, "user": object()}, sensitive=["password"]),
        Job(task="login", kwargs={"password": CANARY}, sensitive=["password"]),
        Job(task="login", args=CANARY, sensitive=["password"]),
        Job(task="login", kwargs={1: CANARY}, sensitive=["password"]),  # type: ignore[dict-item]  # the point
        Job(task="guarded", args=[CANARY, CANARY]),
    ],
)
def test_no_error_shows_them(app: Celery, job: Job) -> None:
    with pytest.raises(ValidationError) as refused, app.jobs.handle() as handle:  # type: ignore[attr-defined]  # made by Jobs
        handle.submit(job)
    assert CANARY not in str(refused.value)


def test_log_of_unpublishable_job_hides_sensitive_arguments(
    app: Celery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TypeError(f"what is {CANARY}?")

    monkeypatch.setattr(messages, "masked", fail)
    with caplog.at_level(logging.DEBUG), app.jobs.handle() as handle:  # type: ignore[attr-defined]  # made by Jobs
        handle.submit(Job(task="login", args=["ann", CANARY], sensitive=["password"], queue=QUEUE))
    assert re.search(r"no message can be built of job \d+: TypeError", caplog.text)
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    "sensitive", ["password", b"password", [-1], [1.5], [True], 3, {"password": 1}, None]
)
def test_malformed_sensitive_list_is_refused(app: Celery, sensitive: Any) -> None:
    with pytest.raises(ValidationError, match="sensitive"), app.jobs.handle() as handle:  # type: ignore[attr-defined]  # made by Jobs
        handle.submit(Job(task="login", args=["ann", CANARY], sensitive=sensitive))


@pytest.mark.parametrize("sensitive", [["pasword"], [2], ["user", "self"], ["password", 7]])
def test_sensitive_name_of_no_parameter_is_refused(app: Celery, sensitive: Any) -> None:
    """A misspelled name would hide nothing. Of the call, and of the decorator, whatever submits."""

    def typed(self: Any, user: str, password: str) -> None: ...

    register: Any = app.task
    register(typed, name="typed", bind=True, shared=False)
    register(typed, name="attribute", bind=True, shared=False, sensitive=sensitive, durable=True)
    signature: Any = app.tasks["typed"].s("ann", CANARY)
    canvas: Any = app.tasks["attribute"].si("ann", CANARY) | app.tasks["attribute"].si("ann", CANARY)
    calls: list[Callable[[], Any]] = [
        lambda: app.jobs.submit(Job(task="typed", args=["ann", CANARY], sensitive=sensitive)),  # type: ignore[attr-defined]  # made by Jobs
        lambda: app.jobs.submit(signature.clone().set(sensitive=sensitive)),  # type: ignore[attr-defined]  # made by Jobs
        lambda: app.jobs.submit(Job(task="attribute", args=["ann", CANARY])),  # type: ignore[attr-defined]  # made by Jobs
        lambda: app.tasks["attribute"].delay("ann", password=CANARY),
        canvas.delay,
    ]
    for call in calls:
        accepted = r"parameters of (typed|attribute) \(user, password\), or their positions"
        with pytest.raises(ValidationError, match=f"sensitive: .* {accepted}") as refused:
            call()
        assert CANARY not in str(refused.value)
    assert app.jobs.find() == []  # type: ignore[attr-defined]  # made by Jobs


def test_any_name_is_accepted_of_a_task_whose_parameters_are_not_known(app: Celery) -> None:
    def untyped(user: str) -> None: ...

    register: Any = app.task
    register(untyped, name="untyped", shared=False, typing=False)
    names: dict[str, list[str | int]] = {"untyped": ["token"], "elsewhere": ["token"], "login": ["token", 7]}
    for task, sensitive in names.items():
        handle = app.jobs.handle()  # type: ignore[attr-defined]  # made by Jobs
        handle.submit(Job(task=task, args=["ann", "b"], kwargs={"token": CANARY}, sensitive=sensitive))
        assert CANARY not in repr(handle.get_job())
        assert app.jobs.submit(handle.get_job())  # type: ignore[attr-defined]  # a record may name all positions


def test_job_is_shown_before_its_submit_without_any_position() -> None:
    assert CANARY not in repr(Job(task="login", args=["ann", CANARY], sensitive=["password"]))
    assert CANARY in repr(Job(task="login", args=["ann", CANARY]))


def test_names_find_their_positions() -> None:
    def function(first: int, second: int, *rest: int, named: int = 0) -> None: ...

    assert resolved(["second"], function, [1, 2]) == ["second", 1]
    assert resolved(["named"], function, [1, 2]) == ["named"]
    assert resolved(["rest"], function, [1, 2, 3]) == ["rest", "*"]
    assert resolved(["second"], None, []) == ["second"]
    assert resolved(["second"], None, [1]) == ["second", "*"]
    assert resolved([], None, [1]) == []
    assert resolved([0], None, [1, 2]) == [0]
    assert masked([1, 2, 3], {"a": 4, "b": 5}, [0, "b"]) == (("***", 2, 3), {"a": 4, "b": "***"})
    assert masked([1, 2], {"a": 4}, ["*"]) == (("***", "***"), {"a": 4})


LOST = SimpleNamespace(exception=WorkerLostError("gone"), traceback="", exc_info=None)

ENDS: dict[str, Callable[[Any], Any]] = {
    "hard limit": lambda request: request.on_timeout(soft=False, timeout=1),
    "revoked": lambda request: request._announce_revoked("terminated", True, "TERM", False),
    "cut off": lambda request: request.cancel(Mock()),
    "lost": lambda request: request.on_failure(LOST),
}


@pytest.mark.parametrize("end", ENDS)
def test_main_process_that_knows_arguments_stores_none(sqlite_url: str, end: str) -> None:
    """A pool of threads or greenlets runs bodies in it, with the arguments in its requests."""
    app: Any = Celery("hidden", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.result_extended = True
    Jobs(app, sqlite_url)

    @app.task(name="login", shared=False, lazy=False)  # type: ignore[untyped-decorator]  # Celery's
    def login(user: str, password: str) -> None: ...

    message = TaskMessage("login", args=["ann", CANARY])
    message.headers |= job_headers(1, 1, ["password", 1])
    message.delivery_info = {}
    request = login.Request(message, app=app, task=login)
    request.time_start = 1.0
    request.request_dict.update(args=["ann", CANARY], kwargs={})

    ENDS[end](request)

    assert app.backend.get_task_meta(message.headers["id"])["args"] == ["ann", "***"]
