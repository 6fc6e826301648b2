"""Sessions of Flask-SQLAlchemy and SQLModel: a job joins the transaction; its message follows the commit."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import sqlmodel
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from jobhandle_celery import ApiUsageError, Job, UnknownJobError
from tests.shop import Shop
from tests.support import eventually

pytestmark = pytest.mark.ecosystem

ADD = Job(task="tests.add", args=[1, 2])


@pytest.fixture
def shop(sqlite_url: str) -> Iterator[Shop]:
    shop = Shop(sqlite_url)
    yield shop
    shop.close()


@pytest.fixture
def flask(shop: Shop) -> Any:
    flask = Flask("shop")
    flask.config["SQLALCHEMY_DATABASE_URI"] = str(shop.engine.url)
    return flask


@pytest.fixture
def db(flask: Any) -> Iterator[Any]:
    """Flask-SQLAlchemy, on the database of the jobs."""
    db = SQLAlchemy(flask)
    yield db
    with flask.app_context():
        db.engine.dispose()


def test_scoped_session_of_flask_sqlalchemy_is_joined(shop: Shop, flask: Any, db: Any) -> None:
    class Order(db.Model):  # type: ignore[misc]  # as in its documentation
        __tablename__ = "shop_order"
        id = db.Column(db.Integer, primary_key=True)

    handle = shop.jobs.handle(username="ann")
    with flask.app_context():
        db.session.add(Order(id=1))
        handle.submit(ADD, session=db.session)
        db.session.rollback()
        with pytest.raises(UnknownJobError):
            handle.attach(1)
        db.session.add(Order(id=2))
        job_id = handle.submit(ADD, session=db.session)
        assert (shop.jobs.find(), shop.sent()) == ([], [])
        db.session.commit()
    assert [job.id for job in shop.jobs.find()] == shop.sent() == [job_id]
    assert shop.orders() == [2]


def test_end_of_flask_request_without_commit_submits_nothing(shop: Shop, flask: Any, db: Any) -> None:
    """The extension removes the session at the end of the request, which rolls it back."""

    @shop.app.task(name="tests.durable_add", durable=True, shared=False)  # type: ignore[untyped-decorator]
    def add(x: int, y: int) -> int:
        return x + y

    @flask.route("/<int:commit>")  # type: ignore[untyped-decorator]
    def view(commit: int) -> str:
        with shop.jobs.submitting(session=db.session):
            add.delay(1, 2)
        if commit:
            db.session.commit()
        return "done"

    client = flask.test_client()
    assert client.get("/0").text == "done"
    assert (shop.jobs.find(), shop.sent()) == ([], [])
    assert client.get("/1").text == "done"
    assert [job.id for job in shop.jobs.find()] == shop.sent() == [1]


def test_session_of_sqlmodel_is_joined(shop: Shop) -> None:
    handle = shop.jobs.handle()
    with sqlmodel.Session(shop.engine) as session:
        shop.order(session, 1)
        handle.submit(ADD, session=session)
        session.rollback()
    with sqlmodel.Session(shop.engine) as session:
        shop.order(session, 2)
        with session.begin_nested() as savepoint:
            handle.submit(ADD, session=session)
            savepoint.rollback()
        job_id = handle.submit(ADD, session=session)
        assert shop.sent() == []
        session.commit()
    assert [job.id for job in shop.jobs.find()] == shop.sent() == [job_id]
    assert shop.orders() == [2]


def test_asynchronous_session_of_sqlmodel_is_joined_by_an_async_handle(shop: Shop) -> None:
    async def main() -> int:
        engine = create_async_engine(str(shop.engine.url).replace("sqlite:", "sqlite+aiosqlite:"))
        handle = shop.jobs.async_handle()
        async with AsyncSession(engine) as session:
            with pytest.raises(ApiUsageError, match="run_sync"):
                shop.jobs.submit(ADD, session=session)
            await handle.submit(ADD, session=session)
            await session.rollback()
            job_id: int = await handle.submit(ADD, session=session)
            assert shop.sent() == []
            await session.commit()
        await engine.dispose()
        return job_id

    job_id = asyncio.run(main())
    assert [job.id for job in shop.jobs.find()] == [job_id]
    assert eventually(shop.sent) == [job_id]  # published by a thread
