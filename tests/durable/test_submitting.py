"""`Jobs.submitting`: for whom, and in whose transaction, Celery's calls submit jobs."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import pytest
import sqlalchemy
from celery import Task
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from jobhandle_celery import ValidationError
from tests.broker.messages import received

BaseTask: Any = Task


@pytest.fixture
def app(database_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    return make_jobs_app(database_url, jobhandle_durable=True)


@pytest.fixture
def engine(database_url: str) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(database_url)
    yield engine
    engine.dispose()


def add(x: int, y: int = 0) -> int:
    return x + y


def submit(app: Any) -> tuple[str | None, str | None]:
    """Submit a job, and return the user and the group that it has."""
    job = app.jobs.attach(app.tasks["tests.add"].delay(1, 2).job_id).get_job()
    return job.username, job.groupname


def test_blocks_are_nested(app: Any) -> None:
    assert submit(app) == (None, None)
    with app.jobs.submitting(username="ann", groupname="lab"):
        assert submit(app) == ("ann", "lab")
        with app.jobs.submitting(username="bob"):
            assert submit(app) == ("bob", "lab")
        with app.jobs.submitting(groupname=None):
            assert submit(app) == ("ann", None)
        with pytest.raises(LookupError), app.jobs.submitting(username="eve"):
            raise LookupError
        assert submit(app) == ("ann", "lab")
    assert submit(app) == (None, None)


def test_names_are_checked(app: Any) -> None:
    for names in ({"username": None}, {"username": ""}, {"groupname": 5}):
        with pytest.raises(ValidationError), app.jobs.submitting(**names):
            pytest.fail("the block was entered")


class OnCommit(BaseTask):  # type: ignore[misc]  # untyped in its stubs
    """As Celery's `DjangoTask`, with a list in place of Django's transaction."""

    at_commit: ClassVar[list[Callable[[], Any]]] = []

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:
        self.at_commit.append(partial(self.delay, *args, **kwargs))

    def apply_async_on_commit(self, *args: Any, **kwargs: Any) -> None:
        self.at_commit.append(partial(self.apply_async, *args, **kwargs))


class Audited(OnCommit):
    """With methods of its own."""

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:
        super().delay_on_commit(*args, y=2, **kwargs)

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        return super().apply_async(args, kwargs)


@pytest.mark.parametrize("base", [OnCommit, Audited])
def test_call_on_commit_is_in_the_block_of_the_call(app: Any, base: Any) -> None:
    base.at_commit.clear()
    task = app.task(name="tests.on_commit", base=base, shared=False)(add)
    with app.jobs.submitting(username="ann", groupname="lab"):
        task.delay_on_commit(1)
    with app.jobs.submitting(username="bob"):
        task.apply_async_on_commit((1, 2))
        with app.jobs.submitting(username="eve"):
            jobs = [app.jobs.attach(call().job_id).get_job() for call in base.at_commit]
        assert submit(app) == ("bob", None)
    assert [(job.username, job.groupname) for job in jobs] == [("ann", "lab"), ("bob", None)]
    task.delay_on_commit(1)
    base.at_commit[-1]()
    assert app.jobs.find(limit=1)[0].username is None


def test_call_on_commit_does_not_join_the_session_of_a_block_that_has_ended(
    app: Any, engine: sqlalchemy.Engine
) -> None:
    """It may never be committed again."""
    OnCommit.at_commit.clear()
    task = app.task(name="tests.on_commit", base=OnCommit, shared=False)(add)
    with Session(engine) as session, app.jobs.submitting(username="ann", session=session):
        task.delay_on_commit(1)
    result = OnCommit.at_commit[0]()
    assert app.jobs.attach(result.job_id).get_job().username == "ann"


def test_block_holds_for_its_thread_alone(app: Any) -> None:
    users = []
    with app.jobs.submitting(username="ann"):
        thread = threading.Thread(target=lambda: users.append(submit(app)))
        thread.start()
        thread.join()
    assert users == [(None, None)]


def test_block_holds_for_its_coroutine_alone(app: Any) -> None:
    async def submit_for(username: str, mine: asyncio.Event, others: asyncio.Event) -> Any:
        with app.jobs.submitting(username=username):
            mine.set()
            await others.wait()  # both blocks are entered
            return await asyncio.to_thread(submit, app)

    async def both() -> Any:
        ann, bob = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(submit_for("ann", ann, bob), submit_for("bob", bob, ann))

    assert asyncio.run(both()) == [("ann", None), ("bob", None)]


def test_block_of_one_app_does_not_hold_for_another(
    app: Any, database_url: str, make_jobs_app: Callable[..., Any]
) -> None:
    other = make_jobs_app(database_url, jobhandle_durable=True)
    with app.jobs.submitting(username="ann"):
        assert submit(other) == (None, None)


@pytest.mark.parametrize("scoped", [False, True])
def test_row_joins_the_transaction_of_the_session(app: Any, engine: sqlalchemy.Engine, scoped: bool) -> None:
    add = app.tasks["tests.add"]
    session: Any = scoped_session(sessionmaker(engine)) if scoped else Session(engine)
    with app.jobs.submitting(username="ann", session=session):
        result = add.delay(1, 2)
        assert (result.state, app.jobs.find(), received(app)) == ("PENDING", [], [])
        session.commit()
        (job,) = app.jobs.find()
        assert (job.id, job.username, len(received(app))) == (result.job_id, "ann", 1)

        add.delay(3, 4)
        session.rollback()
        kept = add.delay(5, 6)
        savepoint = session.begin_nested()
        add.delay(7, 8)
        savepoint.rollback()
        session.commit()
        with app.jobs.submitting(session=None):
            assert submit(app) == ("ann", None)
    assert sorted(job.args for job in app.jobs.find()) == [[1, 2], [1, 2], [5, 6]]
    assert app.jobs.attach(kept.job_id).get_job().args == [5, 6]
    assert len(received(app)) == 2
    session.close()


def test_canvas_and_callbacks_join_it_too(app: Any, engine: sqlalchemy.Engine) -> None:
    add = app.tasks["tests.add"]
    with Session(engine) as session, app.jobs.submitting(username="ann", session=session):
        (add.s(1, 2) | add.s(3)).delay()
        add.apply_async((1, 2), link=add.s(3))
        assert app.jobs.find() == []
        session.rollback()
        assert app.jobs.find() == []
        (add.s(1, 2) | add.s(3)).delay()
        add.apply_async((1, 2), link=add.s(3))
        session.commit()
    assert [job.username for job in app.jobs.find()] == ["ann"] * 5
    assert len(received(app)) == 2
