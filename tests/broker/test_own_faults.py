"""An error of our own code is logged as such and never taken for an outage; jobs go out all the same."""

import inspect
import logging
import re
import sys
import types
import uuid
from typing import Any

import kombu.transport.redis
import pytest

from jobhandle_celery import JobStatus, internal_errors
from jobhandle_celery.broker import connection, redis_transport
from tests.broker.messages import ADD, Make, received
from tests.bugs import blames_the_broker, bug, logged_bugs, submit_three_times


@pytest.fixture(autouse=True)
def _no_fault_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internal_errors, "_logged", set())


@pytest.fixture(params=["_create_client", "conn_or_acquire"])
def kombu_with_another_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have kombu's Redis transport rename one of the private methods that we use, as a later one may."""
    name: str = request.param
    module = types.ModuleType(f"kombu_redis_{uuid.uuid4().hex}")
    module.__package__ = "kombu.transport"
    source = inspect.getsource(kombu.transport.redis)
    exec(compile(re.sub(rf"\b{name}\b", "_another_name", source), module.__name__, "exec"), vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(kombu.transport.TRANSPORT_ALIASES, "redis", f"{module.__name__}:Transport")
    monkeypatch.setattr(kombu.transport, "_transport_cache", {})
    return name


@pytest.mark.usefixtures("kombu_with_another_name")
def test_jobs_go_out_when_kombu_has_renamed_a_private_method(
    make: Make, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails is logged once, with its traceback (fault 25)."""
    app = make(redis_url)
    count = submit_three_times(app)
    assert app.jobs.count_by_status()[JobStatus.QUEUED] == count == len(received(app))
    (said,) = logged_bugs(caplog)
    assert said.exc_info
    assert not blames_the_broker(caplog)


@pytest.mark.parametrize(
    ("of", "name"),
    [
        (redis_transport.Client, "__init__"),
        (redis_transport.Client, "push"),
        (redis_transport.Client, "taped"),
        (redis_transport.Stencil, "cut"),
        (redis_transport.Stencil, "filled"),
        (connection.BrokerConnection, "_stencil"),
    ],
)
def test_jobs_go_out_by_kombu_after_a_bug_in_the_fast_way_to_redis(
    of: type, name: str, make: Make, redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """A bug in the fast transport costs speed alone (fault 25)."""
    monkeypatch.setattr(of, name, bug)
    app = make(redis_url)
    count = submit_three_times(app)
    assert app.jobs.count_by_status()[JobStatus.QUEUED] == count == len(received(app))
    assert len(logged_bugs(caplog)) == 1
    assert not blames_the_broker(caplog)


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, RuntimeError])
@pytest.mark.parametrize("count", [1, 3])
def test_a_bug_on_the_only_way_out_is_no_outage(
    count: int, error: type[Exception], make: Make, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Jobs stay Submitted, later ones are tried, and the log names the bug once (fault 25)."""

    def fail(*_: Any, **__: Any) -> None:
        raise error("a bug")

    app = make()
    with monkeypatch.context() as patch:
        patch.setattr(connection.BrokerConnection, "_publish", fail)
        app.jobs.submit_many([ADD] * count)
        (said,) = logged_bugs(caplog)
        assert said.exc_info
        assert said.levelno == logging.ERROR
        assert not blames_the_broker(caplog)
        assert app.jobs.count_by_status()[JobStatus.SUBMITTED] == count
    handle = app.jobs.handle()
    handle.submit(ADD)
    assert handle.job_status() is JobStatus.QUEUED
