"""Exceptions of failed jobs, as `JobResult.get` raises them: made from the row, as Celery makes them."""

import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery import chain, chord, group
from celery.exceptions import ChordError

from jobhandle_celery import Failure, JobFailedError
from jobhandle_celery.durable.meta import exception_of
from jobhandle_celery.store.decoding import to_failure
from jobhandle_celery.store.records import encode_failure
from jobhandle_celery.worker.decision import failure_of, failure_of_state, time_limit_failure
from tests.durable.service import make_service


class PaymentDeclined(Exception):
    """An exception of the user, whose objects need more than a message."""

    class Again(Exception):
        """As Django's `DoesNotExist`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code

    def __str__(self) -> str:
        return f"declined: {self.args[1]}"


class Final(type):
    """Refuses classes that are derived."""

    def __new__(cls, name: str, bases: Any, own: Any) -> Any:
        if Exception not in bases:
            raise RuntimeError("final")
        return super().__new__(cls, name, bases, own)


class Underivable(Exception, metaclass=Final):
    """An exception from which no class can be derived."""


def raised(error: Exception) -> tuple[Any, Failure]:
    """What a reader of the row has of an exception that a body raised."""
    failure = to_failure(encode_failure(failure_of(error, "Traceback")))
    assert failure is not None
    return exception_of(7, failure), failure


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no good"),
        ValueError(),
        KeyError("k", {"a": [1.5, None]}),
        FileNotFoundError(2, "No such file"),
        UnicodeDecodeError("ascii", b"\xff", 0, 1, "not in range"),
        SoftTimeLimitExceeded("other than a limit's"),
        PaymentDeclined(7, "no money"),
        PaymentDeclined.Again(UUID(int=5), datetime(2040, 1, 1, tzinfo=UTC)),
    ],
    ids=repr,
)
def test_exception_is_that_of_the_task(error: Any) -> None:
    made, failure = raised(error)
    again = pickle.loads(pickle.dumps(made))
    for other in (made, again):
        assert isinstance(other, JobFailedError)
        assert isinstance(other, type(error))
        assert type(other).__qualname__ == type(error).__qualname__
        assert (other.job_id, other.failure) == (7, failure)
        if not isinstance(error, SoftTimeLimitExceeded):
            assert (str(other), other.args) == (str(error), error.args)
        for name in ("code", "errno", "start"):
            assert getattr(other, name, None) == getattr(error, name, None)
    # Raised by a body that waited for it, it is the same once more.
    assert isinstance(raised(made)[0], type(error))


@pytest.mark.parametrize("error", [SoftTimeLimitExceeded(), SoftTimeLimitExceeded(5), TimeLimitExceeded(1)])
def test_exception_of_a_time_limit_has_celerys_arguments(error: Any) -> None:
    failure = time_limit_failure(error)
    made = exception_of(7, failure)
    assert isinstance(made, type(error))
    assert (made.args, str(made)) == (error.args, str(error))
    assert failure.message.endswith("was exceeded")


@pytest.mark.parametrize(
    "failure",
    [
        failure_of(Underivable("why")),
        failure_of(PaymentDeclined(7, "x" * 20_000)),  # too long to be kept
        replace(failure_of(ValueError("why")), path="jobhandle.not_imported:ValueError"),
        replace(failure_of(ValueError("why")), path=f"{__name__}:NoSuchClass"),
        replace(failure_of(ValueError("why")), path="builtins:print"),
        replace(failure_of(ValueError("why")), path="builtins:SystemExit"),
        replace(failure_of(ValueError("why")), path=f"{__name__}:raised.<locals>.x"),
        Failure("system", "SystemExit", "why"),
        failure_of(JobFailedError(5, Failure("task", "ValueError", "why"))),
    ],
)
def test_other_exceptions_are_job_failed_errors(failure: Failure) -> None:
    error = exception_of(7, failure)
    assert type(error) is JobFailedError
    assert str(error) == f"job 7 failed: {failure.type}: {failure.message}"


def test_exception_of_an_older_row_is_of_its_standard_class() -> None:
    older = to_failure('{"kind": "task", "type": "KeyError", "message": "why", "traceback": ""}')
    assert older == Failure("task", "KeyError", "why")
    assert isinstance(exception_of(7, older), KeyError)
    lost = exception_of(7, Failure("system", "WorkerLostError", "why"))
    assert isinstance(lost, WorkerLostError)
    assert str(lost) == "why"


def test_exception_that_a_task_sets_is_of_its_class() -> None:
    """As Celery's documentation shows it, before `Ignore`."""
    meta = {"exc_type": "PaymentDeclined", "exc_message": (7, "no money"), "exc_module": __name__}
    error: Any = exception_of(7, failure_of_state(meta))
    assert isinstance(error, PaymentDeclined)
    assert error.code == 7


# Of trees.


@pytest.fixture
def tasks(sqlite_url: str) -> Iterator[Any]:
    app: Any = make_service("memory://", sqlite_url, {"task_always_eager": True})
    yield app.tasks
    app.jobs.close()


def test_chain_raises_what_its_member_raised(tasks: Any) -> None:
    add, fail = tasks["shop.add"], tasks["shop.fail"]
    nested: Any = chain(add.si(1, 2), group(add.si(1, 1), chain(fail.si("no good"), add.si(1, 2))))
    result: Any = chain(add.si(3, 4), fail.si("no good")).delay()
    with pytest.raises(ValueError, match=r"^no good$") as raised:
        result.get()
    error: Any = raised.value
    assert (error.job_id, error.failure.type) == (result.children[1].job_id, "ValueError")
    assert "ValueError: no good" in result.traceback
    assert result.failed()
    result = nested.delay()
    with pytest.raises(ValueError, match=r"^no good$"):
        result.get()
    with pytest.raises(ValueError, match=r"^no good$"):
        group(add.si(1, 2), fail.si("no good")).delay().get()


def failing_chord(tasks: Any, kind: str) -> Any:
    add, fail = tasks["shop.add"], tasks["shop.fail"]
    header, body = group(add.si(1, 2), fail.si("no good")), add.si(1, 2)
    canvases: dict[str, Any] = {
        "chord": lambda: chord(header, body),
        "group | body": lambda: header | body,
        "chain with a chord": lambda: chain(add.si(1, 2), header, body, add.si(3, 4)),
        "group of chords": lambda: group(chord(header, body), add.si(1, 2)),
    }
    return canvases[kind]().delay()


@pytest.mark.parametrize("kind", ["chord", "group | body", "chain with a chord", "group of chords"])
def test_chord_of_which_the_header_failed_raises_what_its_member_raised(tasks: Any, kind: str) -> None:
    """As Celery does: `get` reads the result's parent, which is that of the header."""
    result = failing_chord(tasks, kind)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^no good$") as raised:
            result.get()
    error: Any = raised.value
    assert not isinstance(error, ChordError)
    assert error.failure.type == "ValueError"


@pytest.mark.parametrize("kind", ["chord", "group | body", "chain with a chord"])
def test_result_of_a_chord_of_which_the_header_failed_is_a_chord_error(tasks: Any, kind: str) -> None:
    """As Celery stores it for the body; with what the member raised as its cause."""
    result = failing_chord(tasks, kind)
    text = r"^Dependency .+ raised ValueError\('no good'\)$"
    errors: list[Any] = [result.get(propagate=False), result.result]
    for error in errors:
        assert type(error).__name__ == "ChordError"
        assert re.match(text, str(error))
        assert (type(error.__cause__).__name__, str(error.__cause__)) == ("ValueError", "no good")
        assert error.job_id == result.job_id
    with pytest.raises(ChordError, match=text):
        result.get(follow_parents=False)
    with pytest.raises(ChordError, match=text):
        result.maybe_throw()
    assert result.failed()
    assert "ValueError: no good" in result.traceback


def test_chord_of_which_the_body_failed_raises_what_that_raised(tasks: Any) -> None:
    add, fail = tasks["shop.add"], tasks["shop.fail"]
    of_body: Any = chord([add.si(1, 2)], fail.si("no good"))
    with pytest.raises(ValueError, match=r"^no good$"):
        of_body.delay().get()
