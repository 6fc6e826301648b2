"""Servers that accept everything and answer nothing: each command says so, and ends."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobhandle_celery.cli import context
from jobhandle_celery.cli.deadline import Question, Silent
from jobhandle_celery.cli.doctor import CHECKS, findings
from jobhandle_celery.store import Store
from tests.apps import make_app
from tests.cli.typed import Answer, typed


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Stands for a call that is never answered."""
    over = threading.Event()
    for module, name, seconds in (
        (findings, "AT_MOST", 0.3),
        (findings, "IN_ALL", 1.0),
        (context, "DATABASE_BOUND", 0.3),
    ):
        monkeypatch.setattr(module, name, seconds)

    def wait(*_: Any, **__: Any) -> None:
        over.wait(60)
        raise RuntimeError("nobody waits for this any more")

    yield wait
    over.set()


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Any]:
    app: Any = make_app("memory://", sqlite_url)
    yield app
    app.jobs.close()


def said(answer: Answer) -> dict[str, tuple[str, str]]:
    """What the doctor found, by check."""
    return {one["check"]: (one["level"], one["says"]) for one in map(json.loads, answer.out.splitlines())}


def test_the_doctor_names_a_database_that_is_silent(
    app: Any, silence: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And makes every check that does not need it (fault 24)."""
    monkeypatch.setattr(Store, "now", silence)
    found = said(typed(app, "doctor", "--json"))
    assert found["database"][0] == "BAD"
    assert "the database did not answer: no answer within" in found["database"][1]
    assert found["broker"][0] == "OK"
    assert set(found) == {check.name for check in CHECKS}


def test_the_doctor_names_a_broker_that_is_silent(
    app: Any, silence: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And makes every check that does not need it (fault 24)."""
    monkeypatch.setattr(findings, "bounded", silence)
    found = said(typed(app, "doctor", "--json"))
    assert found["broker"][0] == "BAD"
    assert "no answer within" in found["broker"][1]
    assert found["database"][0] == "OK"


def test_the_doctor_names_a_result_backend_that_is_silent(
    app: Any, silence: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 24."""
    app.conf.result_backend = "cache+memory://"
    monkeypatch.setattr(type(app.backend), "get_task_meta", silence)
    level, says = said(typed(app, "doctor", "--json"))["result backend"]
    assert level == "WARN"
    assert "no answer within" in says


def test_the_doctor_ends_though_every_check_is_silent(
    app: Any, silence: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All checks share one deadline (fault 24)."""
    for name in ("durability", "passes", "workers", "count", "stuck", "count_held"):
        monkeypatch.setattr(Store, name, silence)
    found = said(typed(app, "doctor", "--json"))
    silent = {check for check, (_, says) in found.items() if "no answer within" in says}
    assert silent >= {"durability", "sweeps", "workers", "stuck jobs", "held jobs"}
    assert {found[check][0] for check in silent} == {"UNKNOWN"}


COMMANDS: dict[str, list[object]] = {
    "list": [],
    "show": [1],
    "wait": [1],
    "watch": [1],
    "cancel": [1],
    "resubmit": [1],
    "release": [1],
    "stats": [],
    "top": [],
    "sweep": [],
    "prune": ["--older-than", "30d", "--yes"],
    "replay-events": ["--since", "1h"],
    "submit": ["tests.add", "--args", "[1, 2]"],
    "upgrade": [],
}


def test_the_table_of_commands_is_whole() -> None:
    from jobhandle_celery.cli import jobs

    assert set(COMMANDS) == set(jobs.commands) - {"doctor"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_a_database_that_is_silent(
    command: str, app: Any, silence: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it would have done (fault 24)."""
    monkeypatch.setattr(Store, "now", silence)
    answer = typed(app, command, *COMMANDS[command])
    assert answer.code == 5, answer
    assert "the database did not answer: no answer within" in answer.err


def test_an_answer_or_an_error_that_comes_in_time_is_passed_on() -> None:
    assert Question(lambda: 3).answer(60) == 3
    with pytest.raises(ZeroDivisionError):
        Question(lambda: 1 / 0).answer(60)
    over = threading.Event()
    with pytest.raises(Silent):
        Question(over.wait).answer(0.01)
    over.set()
