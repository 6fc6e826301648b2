"""`app.control.revoke`, which services, Flower and Celery's results call: it cancels rows."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, chain, group
from celery.app.control import Control
from celery.result import AsyncResult, GroupResult, ResultSet

from jobhandle_celery import Jobs
from tests.durable.service import add, make_service


@pytest.fixture
def broadcasts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The ids of what is broadcast."""
    sent: list[Any] = []

    def broadcast(self: Any, command: str, arguments: Any = None, **_: Any) -> str:
        sent.append(arguments["task_id"])
        return "replies"

    monkeypatch.setattr(Control, "broadcast", broadcast)
    return sent


@pytest.fixture
def app(sqlite_url: str, broadcasts: list[Any]) -> Iterator[Any]:
    app: Any = make_service("memory://", sqlite_url)
    yield app
    app.jobs.close()


def submitted(app: Any, number: int = 1) -> list[Any]:
    return [app.tasks["shop.add"].apply_async((1, 2), countdown=3600) for _ in range(number)]


REVOKES: dict[str, Callable[[Any, Any], Any]] = {
    "control": lambda app, result: app.control.revoke(result.id),
    "control, by keyword": lambda app, result: app.control.revoke(task_id=result.id),
    "a list": lambda app, result: app.control.revoke([result.id, "unknown"], terminate=True),
    "terminate": lambda app, result: app.control.terminate(result.id),
    "AsyncResult": lambda app, result: AsyncResult(result.id, app=app).revoke(),
    "ResultSet": lambda _, result: ResultSet([result]).revoke(),
    "GroupResult": lambda _, result: GroupResult("its id", [result]).revoke(),
}


@pytest.mark.parametrize("revoke", REVOKES)
def test_revoke_cancels_what_has_not_started(revoke: str, app: Any, broadcasts: list[Any]) -> None:
    result, other = submitted(app, 2)
    REVOKES[revoke](app, result)
    assert (result.state, other.state) == ("REVOKED", "PENDING")
    assert len(broadcasts) == 1
    assert app.control.revoke("unknown") == "replies"
    assert app.control.revoke([]) == "replies"


def test_revoke_leaves_what_runs_and_what_has_ended(app: Any, broadcasts: list[Any]) -> None:
    """The broadcast ends what runs, with `terminate` alone."""
    running, finished = (app.tasks["shop.add"].delay(1, 2) for _ in range(2))
    for result in (running, finished):
        app.jobs.attach(result.job_id).set_status("Running")
    app.jobs.attach(finished.job_id).set_status("Finished")
    app.control.revoke([running.id, finished.id], terminate=True)
    assert (running.state, finished.state) == ("STARTED", "SUCCESS")
    assert app.jobs.attach(running.job_id).get_job().cancel_requested is None
    assert broadcasts == [[running.id, finished.id]]


def test_revoke_of_a_tree_cancels_its_members(app: Any) -> None:
    task = app.tasks["shop.add"]
    steps: Any = chain(task.s(1, 2), task.s(3)).delay()
    tasks: Any = group(task.s(1, 2), task.s(3, 4)).delay()
    app.jobs.attach(steps.children[0].job_id).set_status("Running")
    app.control.revoke([steps.id, tasks.id])
    assert [member.state for member in steps.children] == ["STARTED", "REVOKED"]
    assert app.jobs.attach(steps.children[0].job_id).cancel_requested()
    assert [member.state for member in tasks.results] == ["REVOKED", "REVOKED"]


def test_revoke_for_chosen_workers_cancels_nothing(app: Any, broadcasts: list[Any]) -> None:
    (result,) = submitted(app)
    app.control.revoke(result.id, destination=["w1@host"])
    app.control.revoke(result.id, ["w1@host"])
    assert result.state == "PENDING"
    assert len(broadcasts) == 2


def test_revoke_of_another_namespace_cancels_nothing(app: Any, sqlite_url: str) -> None:
    (result,) = submitted(app)
    other: Any = make_service("memory://", sqlite_url, {"jobhandle_namespace": "other"})
    other.control.revoke(result.id)
    other.jobs.close()
    assert result.state == "PENDING"


def test_revoke_is_broadcast_without_the_database(
    broadcasts: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    app: Any = make_service("memory://", "postgresql+psycopg://127.0.0.1:1/none")
    with caplog.at_level(logging.WARNING):
        assert app.control.revoke("the id") == "replies"
    assert broadcasts == ["the id"]
    assert "not every job was cancelled by it" in caplog.text
    app.jobs.close()


class OwnControl(Control):
    """A control of the user."""


def test_own_control_is_kept(sqlite_url: str, broadcasts: list[Any]) -> None:
    app: Any = Celery("own", broker="memory://", control=OwnControl, set_as_current=False)
    early: Any = Celery("early", broker="memory://", set_as_current=False)
    before = early.control
    for made in (app, early):
        made.task(name="shop.add", durable=True, shared=False)(add)
        Jobs(made, sqlite_url)
    assert isinstance(app.control, OwnControl)
    assert early.control is before
    for made in (app, early):
        (result,) = submitted(made)
        made.control.revoke(result.id)
        assert result.state == "REVOKED"
        made.jobs.close()
