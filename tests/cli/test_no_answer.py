"""Servers that accept connections and do not answer: each command reports it, and ends."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobhandle_celery.cli import context, jobs
from jobhandle_celery.cli.deadline import BackgroundCall, NoAnswerError
from jobhandle_celery.cli.doctor import CHECKS, findings
from jobhandle_celery.store.diagnostics import Diagnostics
from jobhandle_celery.store.stats import Stats
from tests.cli.runner import run_command

Block = Callable[..., None]
"""Replaces an attribute of a class or module by a call that does not return before the end of the test."""


@pytest.fixture
def block(monkeypatch: pytest.MonkeyPatch) -> Iterator[Block]:
    ended = threading.Event()
    for module, name, seconds in (
        (findings, "CALL_TIMEOUT", 0.3),
        (findings, "TOTAL_TIMEOUT", 1.0),
        (context, "DATABASE_TIMEOUT", 0.3),
    ):
        monkeypatch.setattr(module, name, seconds)

    def wait(*_: Any, **__: Any) -> None:
        ended.wait(60)
        raise RuntimeError("the test has ended")

    yield lambda owner, name: monkeypatch.setattr(owner, name, wait)
    ended.set()


@pytest.fixture
def app(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    return make_jobs_app(sqlite_url)


def doctor(app: Any) -> dict[str, tuple[str, str]]:
    """Return level and text of the doctor's findings, by check."""
    documents = map(json.loads, run_command(app, "doctor", "--json").out.splitlines())
    return {document["check"]: (document["level"], document["says"]) for document in documents}


@pytest.mark.faults
def test_doctor_reports_database_without_answer(app: Any, block: Block) -> None:
    """The checks that do not need it are made (fault 24)."""
    block(Stats, "now")
    found = doctor(app)
    assert found["database"][0] == "BAD"
    assert "the database did not answer: no answer within" in found["database"][1]
    assert found["broker"][0] == "OK"
    assert set(found) == {check.name for check in CHECKS}


@pytest.mark.faults
def test_doctor_reports_broker_without_answer(app: Any, block: Block) -> None:
    """The checks that do not need it are made (fault 24)."""
    block(findings, "bounded")
    found = doctor(app)
    assert found["broker"][0] == "BAD"
    assert "no answer within" in found["broker"][1]
    assert found["database"][0] == "OK"


@pytest.mark.faults
def test_doctor_reports_result_backend_without_answer(app: Any, block: Block) -> None:
    """Fault 24."""
    app.conf.result_backend = "cache+memory://"
    block(type(app.backend), "get_task_meta")
    level, text = doctor(app)["result backend"]
    assert level == "WARN"
    assert "no answer within" in text


@pytest.mark.faults
def test_doctor_ends_when_no_check_ends(app: Any, block: Block) -> None:
    """All checks share one deadline (fault 24)."""
    for name in ("passes", "workers", "count_startable"):
        block(Stats, name)
    for name in ("durability", "stuck", "count_held"):
        block(Diagnostics, name)
    found = doctor(app)
    unanswered = {check for check, (_, text) in found.items() if "no answer within" in text}
    assert unanswered >= {"durability", "sweeps", "workers", "stuck jobs", "held jobs"}
    assert {found[check][0] for check in unanswered} == {"UNKNOWN"}


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


def test_table_of_commands_is_complete() -> None:
    assert set(COMMANDS) == set(jobs.commands) - {"doctor"}


@pytest.mark.faults
@pytest.mark.parametrize("command", COMMANDS)
def test_command_reports_database_without_answer(command: str, app: Any, block: Block) -> None:
    """Fault 24."""
    block(Stats, "now")
    result = run_command(app, command, *COMMANDS[command])
    assert result.code == 5, result
    assert "the database did not answer: no answer within" in result.err


def test_background_call_returns_raises_or_times_out() -> None:
    assert BackgroundCall(lambda: 3).result(60) == 3
    with pytest.raises(ZeroDivisionError):
        BackgroundCall(lambda: 1 / 0).result(60)
    ended = threading.Event()
    with pytest.raises(NoAnswerError):
        BackgroundCall(ended.wait).result(0.01)
    ended.set()
