"""Retries of store calls: limited by time, not by a number of tries."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import Any

import pytest
from sqlalchemy import event

from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.store import retrying
from tests.store.harness import Harness, new_job

KEYS = ["a", "b", "c"]


class Asked:
    """A call that fails some times before it succeeds."""

    def __init__(self, failures: int, again: str) -> None:
        self.failures, self.again, self.tries = failures, again, 0

    @retrying.retry_on_disconnect
    def verb(self) -> int:
        self.tries += 1
        if self.tries <= self.failures:
            error = DatabaseUnavailableError("a deadlock")
            error.retry = self.again  # type: ignore[assignment]  # a word of its own
            raise error
        return self.tries


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)


@pytest.mark.usefixtures("no_pause")
def test_deadlock_is_retried_up_to_a_time() -> None:
    """Eight processes with few keys outlived six tries (fault 48)."""
    assert Asked(50, "after_pause").verb() == 51


def test_task_that_outlives_a_retried_call_is_no_retry() -> None:
    """It inherits the context of the call. A submit in its session would accept another job's task id."""
    contexts: list[Context] = []

    class Copied(Asked):
        @retrying.retry_on_disconnect
        def copy(self) -> bool:
            if not contexts:
                contexts.append(copy_context())
                error = DatabaseUnavailableError("lost")
                error.retry = "immediately"
                raise error
            return retrying.is_retry()

    assert Copied(0, "").copy()
    assert not contexts[0].run(retrying.is_retry)


def test_late_lock_timeout_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six tries of fifty seconds each were five minutes (fault 48)."""
    monkeypatch.setattr(retrying, "_RETRIES_FOR", 0.0)
    asked = Asked(50, "after_pause")
    with pytest.raises(DatabaseUnavailableError):
        asked.verb()
    assert asked.tries == 1


def test_lost_connection_is_retried_once_however_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss was noticed at a deadline; the retry recognises an earlier success (fault 45)."""
    monkeypatch.setattr(retrying, "_RETRIES_FOR", 0.0)
    assert Asked(1, "immediately").verb() == 2
    with pytest.raises(DatabaseUnavailableError):
        Asked(2, "immediately").verb()


def _find_deadlocks_soon(connection: Any, _record: Any) -> None:
    connection.execute("SET deadlock_timeout = '20ms'")  # instead of a second


def test_crowd_that_submits_few_keys_sees_no_error(
    own_server_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads submit jobs with the same keys and end them (fault 48)."""
    monkeypatch.setattr(retrying, "_RETRIES_FOR", 60.0)  # a busy machine may need more than ten seconds
    harness = own_server_harness
    if harness.database.engine.dialect.name == "postgresql":
        event.listen(harness.database.engine, "connect", _find_deadlocks_soon)
    me = harness.worker()

    def submit_and_finish(seed: int) -> int:
        rng, fresh = random.Random(seed), 0
        for _ in range(15):
            keys = rng.sample(KEYS, 2)
            for submitted in harness.store.inserter.submit([new_job(unique_key=key) for key in keys]):
                if submitted.fresh:
                    fresh += 1
                    assert harness.store.runs.finish(harness.run(submitted.job_id, me), "1")
        return fresh

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(submit_and_finish, range(8)))
