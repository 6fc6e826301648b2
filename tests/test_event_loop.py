"""In a thread with an event loop, no call waits for the broker, nor for a lock that the loop holds."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession

from jobhandle_celery import Job, JobStatus, internal_errors
from jobhandle_celery.store import PendingMessage
from tests.apps import make_app
from tests.async_handles import run_with_engine
from tests.support import eventually

ADD = Job(task="tests.add", args=[1, 2])
LONG = 120


class Gate:
    """Stands in for the publisher's `publish`: each call waits until the gate is open."""

    def __init__(self, publisher: Any) -> None:
        self.open = threading.Event()
        self.sent: list[int] = []
        self.threads: set[int] = set()
        self._publish = publisher.publish
        publisher.publish = self

    def __call__(self, messages: Sequence[PendingMessage]) -> Any:
        messages = list(messages)
        self.threads.add(threading.get_ident())
        # In the loop's own thread a closed gate lets a publish pass: the test fails instead of hanging.
        if threading.current_thread() is not threading.main_thread():
            assert self.open.wait(LONG)
        self.sent += [message.job_id for message in messages]
        return self._publish(messages)


class Shop:
    def __init__(self, url: str, **settings: Any) -> None:
        app: Any = make_app("memory://", url, settings)
        self.app, self.jobs = app, app.jobs
        self.jobs.handle().submit(ADD)  # initialises what is made on first use
        self.gate = Gate(self.jobs._runtime.publisher)
        parsed = sqlalchemy.make_url(url)
        driver = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}[parsed.get_backend_name()]
        self.async_url = parsed.set(drivername=driver)

    def run(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        return run_with_engine(self.async_url, work)

    async def request(self, engine: Any) -> int:
        """Submit a job in a transaction, as a request of a web service does."""
        async with AsyncSession(engine) as session:
            job_id: int = await session.run_sync(lambda sync: self.jobs.handle().submit(ADD, session=sync))
            await session.commit()
        return job_id

    def statuses(self) -> set[JobStatus]:
        return {job.status for job in self.jobs.find()}


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    shop = Shop(request.getfixturevalue(f"{request.param}_url"))
    yield shop
    shop.gate.open.set()
    shop.jobs.close()


def test_commit_in_event_loop_does_not_wait_for_broker(shop: Shop) -> None:
    """The loop goes on while the broker is silent, and messages keep their order (fault 22)."""

    async def five(engine: Any) -> list[int]:
        ids = [await shop.request(engine) for _ in range(5)]
        await asyncio.to_thread(eventually, lambda: shop.gate.threads, LONG, "a publish is under way")
        assert shop.gate.sent == []
        return ids

    ids = shop.run(five)
    assert threading.get_ident() not in shop.gate.threads
    shop.gate.open.set()
    eventually(lambda: shop.gate.sent == ids, LONG, "published")
    eventually(lambda: shop.statuses() == {JobStatus.QUEUED}, LONG, "marked")


def test_concurrent_requests_do_not_lock_each_other_out(shop: Shop) -> None:
    """The loop does not wait for a lock that only it can release (fault 22)."""
    shop.gate.open.set()

    async def crowd(engine: Any) -> list[int]:
        return await asyncio.gather(*(shop.request(engine) for _ in range(20)))

    ids = shop.run(crowd)
    shop.jobs.close()
    assert sorted(shop.gate.sent) == sorted(ids)
    assert shop.statuses() == {JobStatus.QUEUED}


@pytest.mark.parametrize("verb", ["submit", "submit_many", "resubmit", "release"])
def test_call_in_event_loop_does_not_wait_for_broker(verb: str, sqlite_url: str) -> None:
    """Without a session, too, another thread publishes the message (fault 22)."""
    shop = Shop(sqlite_url)
    handle = shop.jobs.handle()
    verbs: dict[str, Callable[[], object]] = {
        "submit": lambda: handle.submit(ADD),
        "submit_many": lambda: shop.jobs.submit_many([ADD] * 3),
        "resubmit": handle.resubmit_job,
        "release": handle.release_job,
    }
    if verb == "resubmit":
        handle.submit(Job(task="tests.add", args=[1, 2], status=JobStatus.WAITING))
        handle.cancel_job()
    elif verb == "release":
        handle.submit(Job(task="tests.add", args=[1, 2], status=JobStatus.WAITING))

    async def call(_: Any) -> None:
        verbs[verb]()

    shop.run(call)
    assert threading.get_ident() not in shop.gate.threads
    shop.gate.open.set()
    shop.jobs.close()
    assert len(shop.gate.sent) == (3 if verb == "submit_many" else 1)


def test_submit_outside_event_loop_publishes_before_returning(sqlite_url: str) -> None:
    shop = Shop(sqlite_url)
    job_id = shop.jobs.handle().submit(ADD)
    assert shop.gate.sent == [job_id]
    assert shop.gate.threads == {threading.get_ident()}
    shop.jobs.close()


def test_eager_job_has_run_when_async_commit_returns(sqlite_url: str) -> None:
    shop = Shop(sqlite_url)
    shop.app.conf.task_always_eager = True
    job_id = shop.run(shop.request)
    assert shop.jobs.attach(job_id).job_status() is JobStatus.FINISHED
    shop.jobs.close()


def test_failed_publish_beside_event_loop_delays_no_other(
    shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug there is logged as such, and the sweeper publishes the job (faults 22, 25)."""
    monkeypatch.setattr(internal_errors, "_logged", set())
    shop.gate.open.set()
    publish, shop.gate._publish = shop.gate._publish, None
    shop.run(shop.request)
    eventually(lambda: "internal error" in caplog.text, LONG)
    shop.gate._publish = publish
    job_id = shop.run(shop.request)
    shop.jobs.close()
    assert shop.jobs.attach(job_id).job_status() is JobStatus.QUEUED


def test_orderly_exit_publishes_pending_jobs(sqlite_url: str) -> None:
    """Jobs that a loop has left to the thread are published before the process ends (fault 22)."""
    program = (
        "import asyncio, sys, time\n"
        "from tests.test_event_loop import Shop\n"
        "shop = Shop(sys.argv[1])\n"
        "publish = shop.gate._publish\n"
        "def slowly(messages):\n"
        "    time.sleep(0.1)\n"
        "    return publish(messages)\n"
        "shop.gate._publish = slowly\n"
        "shop.gate.open.set()\n"
        "for _ in range(3): shop.run(shop.request)\n"
    )
    subprocess.run([sys.executable, "-c", program, sqlite_url], check=True, timeout=60)
    app: Any = make_app("memory://", sqlite_url)
    assert {job.status for job in app.jobs.find()} == {JobStatus.QUEUED}
    app.jobs.close()
