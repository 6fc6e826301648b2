"""A process stopped in mid-transaction, by SIGSTOP or with its machine, does not block others."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, select, update

from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.schema import clock, job, sweep
from jobhandle_celery.store.connections import IDLE_TIMEOUT
from tests.store.harness import Harness
from tests.support import eventually

T = TypeVar("T")


def frozen_after(harness: Harness, statement: Any, meanwhile: Callable[[], T]) -> T:
    """Execute a statement in a transaction that then stays idle while another thread calls `meanwhile`."""
    found: list[T] = []

    def freeze() -> None:
        with harness.store.database.transaction() as connection:
            connection.execute(statement)
            _have_its_limit_come_soon(connection.connection)
            with ThreadPoolExecutor(1) as pool:
                found.append(pool.submit(meanwhile).result(timeout=60))
            connection.execute(select(job.c.id))

    with pytest.raises(DatabaseUnavailableError):
        freeze()
    return found[0]


def _have_its_limit_come_soon(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        limit = connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar()
        assert limit == f"{IDLE_TIMEOUT}s"
        connection.exec_driver_sql("SET idle_in_transaction_session_timeout = '50ms'")
    else:
        assert connection.exec_driver_sql("SELECT @@idle_transaction_timeout").scalar() == IDLE_TIMEOUT
        connection.exec_driver_sql("SET idle_transaction_timeout = 1")


def test_pass_that_freezes_holds_up_no_other(server_harness: Harness) -> None:
    harness = server_harness
    harness.store.sweep.begin_pass()
    harness.pass_time(hours=1)
    mine = sweep.c.namespace == harness.settings.namespace
    noted = update(sweep).where(mine).values(last_pass_at=clock(-3600.0))
    assert frozen_after(harness, noted, harness.store.sweep.begin_pass) is not None, (
        "the other's pass was made"
    )
    assert harness.store.sweep.begin_pass() is None, "the frozen one's write is undone"


def test_frozen_transaction_does_not_keep_a_lost_worker_alive(server_harness: Harness) -> None:
    harness = server_harness
    run = harness.run(harness.submit())
    harness.pass_time(seconds=2 * harness.settings.lease.total_seconds())
    spoken = update(job).where(job.c.id == run.job_id).values(message="half written")
    # A pass skips the row, until the server has ended the frozen transaction.
    [lost] = frozen_after(
        harness, spoken, lambda: eventually(lambda: harness.reap(str(run.worker.worker_uid)))
    )
    assert lost.job_id == run.job_id
    assert harness.row(run.job_id)["message"] != "half written"
