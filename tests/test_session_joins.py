"""Sessions that `submit(session=…)` joins, and those that it refuses before any write."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from jobhandle_celery import ApiUsageError, ConfigurationError, Job, JobStatus, NotAttachedError
from tests.apps import make_app
from tests.job_factory import ADD
from tests.shop import Shop


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "shop_order"
    id: Mapped[int] = mapped_column(primary_key=True)


class Other(Base):
    __tablename__ = "other"
    id: Mapped[int] = mapped_column(primary_key=True)


def of_engine(url: str) -> Session:
    return Session(sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT"))


def of_engine_options(url: str) -> Session:
    return Session(sqlalchemy.create_engine(url).execution_options(isolation_level="AUTOCOMMIT"))


def of_connection(url: str) -> Session:
    return Session(sqlalchemy.create_engine(url).connect().execution_options(isolation_level="AUTOCOMMIT"))


def of_session(url: str) -> Session:
    session = Session(sqlalchemy.create_engine(url))
    session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
    return session


def test_session_in_autocommit_is_refused(shop: Shop) -> None:
    """After its rollback the row was there, and the job ran (fault 8)."""
    url = shop.engine.url.render_as_string(hide_password=False)
    handle = shop.jobs.handle()
    for make in (of_engine, of_engine_options, of_connection, of_session):
        with make(url) as session:
            with pytest.raises(ApiUsageError, match="AUTOCOMMIT"):
                handle.submit(ADD, session=session)
            session.rollback()
            bind = session.get_bind()
        if isinstance(bind, Connection):
            bind.close()
        bind.engine.dispose()
        with pytest.raises(NotAttachedError):
            _ = handle.job_id
    assert shop.jobs.find() == []


def test_session_with_begin_sent_by_listener_is_accepted(shop: Shop) -> None:
    """Python's driver of SQLite is in AUTOCOMMIT in SQLAlchemy's own recipe for savepoints."""
    with Session(shop.engine) as session, session.begin():
        job_id = shop.jobs.handle().submit(ADD, session=session)
    assert shop.sent() == [job_id]


def test_session_with_binds_of_its_models_alone_is_joined(shop: Shop) -> None:
    """`session.connection()` finds no engine there (fault 32)."""
    with Session(binds={Order: shop.engine}) as session, session.begin():
        session.add(Order(id=7))
        job_id = shop.jobs.handle().submit(ADD, session=session)
    assert shop.sent() == [job_id]
    assert shop.orders() == [7]


def test_session_with_several_binds_needs_one_for_our_tables(shop: Shop) -> None:
    other = sqlalchemy.create_engine("sqlite://")
    binds: Any = {Order: shop.engine, Other: other}
    with Session(binds=binds) as session, pytest.raises(ApiUsageError, match=r"schema\.job"):
        shop.jobs.handle().submit(ADD, session=session)
    from jobhandle_celery.schema import job

    with Session(binds=binds | {job: shop.engine}) as session, session.begin():
        job_id = shop.jobs.handle().submit(ADD, session=session)
    assert shop.sent() == [job_id]
    other.dispose()


def test_routing_session_is_joined_on_its_write_engine(shop: Shop) -> None:
    replica = sqlalchemy.create_engine("sqlite://")

    class Routing(Session):
        def get_bind(self, mapper: Any = None, *, clause: Any = None, **_: Any) -> Engine:
            return shop.engine if isinstance(clause, sqlalchemy.Insert) else replica

    with Routing() as session, session.begin():
        job_id = shop.jobs.handle().submit(ADD, session=session)
    assert shop.sent() == [job_id]
    replica.dispose()


def test_asynchronous_sessions_are_refused_with_what_to_call() -> None:
    """An `async_scoped_session` was refused without a hint (fault 34)."""
    pytest.importorskip("greenlet")
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker

    app: Any = make_app("memory://", "sqlite:////nowhere/jobs.db")
    scoped = async_scoped_session(async_sessionmaker(), scopefunc=lambda: 1)

    class OwnSession(AsyncSession):
        """As SQLModel's."""

    for wrong, hint in [
        (AsyncSession(), r"await session\.run_sync"),
        (OwnSession(), r"await session\.run_sync"),
        (scoped, r"await session\(\)\.run_sync"),
    ]:
        with pytest.raises(ApiUsageError, match=hint):
            app.jobs.handle().submit(ADD, session=wrong)


def refusal(database: Any) -> str:
    def use() -> None:
        app: Any = make_app("memory://", database)
        app.jobs.count_by_status()

    with pytest.raises(ConfigurationError) as caught:
        use()
    return str(caught.value)


def test_engine_instead_of_database_is_refused_with_a_hint() -> None:
    """The error was "Not a database URL: the text given" (fault 31)."""
    engine = sqlalchemy.create_engine("sqlite://")
    for wrong in (engine, sessionmaker(engine), scoped_session(sessionmaker(engine)), Session(engine), 5):
        assert "create_engine(url)" in refusal(wrong), wrong
    engine.dispose()


def test_asynchronous_engine_is_refused_with_what_to_give() -> None:
    pytest.importorskip("greenlet")
    asynchronous = pytest.importorskip("sqlalchemy.ext.asyncio")
    engine = asynchronous.create_async_engine("postgresql+psycopg://nobody@nowhere/none")
    for wrong in (engine, lambda: engine):
        assert "synchronous driver" in refusal(wrong)


def test_serialization_failure_in_the_callers_session_is_its_own(postgresql_url: str) -> None:
    """It was raised as `DatabaseUnavailableError`, which retrying callers did not recognise (fault 57)."""
    shop = Shop(postgresql_url)
    keyed = Job(task="tests.add", args=["hunter2", 2], unique_key="scan:1")
    strict = shop.engine.execution_options(isolation_level="REPEATABLE READ")
    handle = shop.jobs.handle()
    with Session(strict) as session:
        shop.order(session, 1)
        first = shop.jobs.handle().submit(keyed)
        with pytest.raises(OperationalError) as caught:
            handle.submit(keyed, session=session)
    error: Any = caught.value
    assert error.orig.sqlstate == "40001"
    assert "hunter2" not in str(error)
    with Session(strict) as session, session.begin():
        assert handle.submit(keyed, session=session) == first
    shop.close()


def test_savepoint_first_waits_for_its_turn_on_sqlite(sqlite_url: str) -> None:
    """A read before the insert took a snapshot, and the insert was "locked" at once (fault 58)."""
    shop = Shop(sqlite_url)
    plain = sqlalchemy.create_engine(sqlite_url)
    for engine in (shop.engine, plain):
        with Session(engine) as session, session.begin():
            session.begin_nested()
            waiting, submitted = threading.Event(), threading.Event()

            def write_meanwhile(
                waiting: threading.Event = waiting, submitted: threading.Event = submitted
            ) -> None:
                with shop.engine.connect() as other:
                    other.exec_driver_sql("INSERT INTO shop_order DEFAULT VALUES")
                    waiting.set()
                    submitted.wait(0.3)
                    other.commit()

            other = threading.Thread(target=write_meanwhile)
            other.start()
            assert waiting.wait(10)
            shop.jobs.handle().submit(ADD, session=session)
            submitted.set()
            other.join()
    assert shop.statuses() == [JobStatus.QUEUED] * 2
    plain.dispose()
    shop.close()


TENANT = {None: "tenant1"}


def of_tenants_engine(shop: Shop) -> Session:
    return Session(shop.engine.execution_options(schema_translate_map=TENANT))


def of_tenants_session(shop: Shop) -> Session:
    session = Session(shop.engine)
    session.connection(execution_options={"schema_translate_map": TENANT})
    return session


def of_tenants_search_path(shop: Shop) -> Session:
    session = Session(shop.engine)
    match shop.engine.dialect.name:
        case "postgresql":
            session.execute(text("SET search_path TO tenant1"))
        case "sqlite":
            pytest.skip("SQLite has none")
        case _:
            name = shop.engine.url.database
            session.execute(text(f"USE `{name}_tenant1`"))
            event.listen(shop.engine, "checkin", lambda connection, _: connection.select_db(name))
    return session


@pytest.fixture
def tenant(shop: Shop) -> Iterator[None]:
    """A tenant's schema with tables of the same names."""
    name = shop.engine.url.database
    server = shop.engine.dialect.name
    with shop.engine.begin() as connection:
        if server == "postgresql":
            connection.exec_driver_sql("CREATE SCHEMA tenant1")
            like = "CREATE TABLE tenant1.{0} (LIKE public.{0})"
        elif server != "sqlite":
            connection.exec_driver_sql(f"CREATE DATABASE `{name}_tenant1`")
            like = f"CREATE TABLE `{name}_tenant1`.{{0}} LIKE {{0}}"
        else:
            like = ""
        for table in ("jobhandle_job", "jobhandle_job_event") if like else ():
            connection.exec_driver_sql(like.format(table))
    yield
    if server not in ("sqlite", "postgresql"):
        with shop.engine.begin() as connection:
            connection.exec_driver_sql(f"DROP DATABASE `{name}_tenant1`")


@pytest.mark.usefixtures("tenant")
@pytest.mark.parametrize("make", [of_tenants_engine, of_tenants_session, of_tenants_search_path])
def test_tables_are_found_in_their_schema_in_any_session(shop: Shop, make: Callable[[Shop], Session]) -> None:
    """A tenant's session missed the tables, or wrote the row to the tenant's (fault 9)."""
    with make(shop) as session:
        job_id = shop.jobs.handle().submit(ADD, session=session)
        session.commit()
    assert shop.sent() == [job_id]
