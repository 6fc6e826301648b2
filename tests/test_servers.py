"""The servers of the other tests answer, are fresh, and can be stopped and restarted."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis
import sqlalchemy

from tests.databases import PostgresqlDatabases
from tests.reaper import Reaper
from tests.servers import PostgresqlServer, RedisServer, execute
from tests.support import eventually


def test_redis_answers_and_its_database_is_empty(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.ping()
        assert client.dbsize() == 0


def test_postgresql_answers_with_a_version_that_we_support(postgresql_server_url: str) -> None:
    [(version,)] = execute(postgresql_server_url, "SHOW server_version_num")

    assert int(version) >= 130000


def test_each_postgresql_database_is_a_fresh_one(postgresql_databases: PostgresqlDatabases) -> None:
    first = postgresql_databases.create_empty()
    execute(first, "CREATE TABLE seen (id int)")
    second = postgresql_databases.create_empty()

    assert execute(second, "SELECT to_regclass('seen')") == [(None,)]
    for url in (first, second):
        postgresql_databases.drop(url)


def test_database_in_use_is_dropped(postgresql_databases: PostgresqlDatabases) -> None:
    url = postgresql_databases.create_empty()
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        postgresql_databases.drop(url)
        with pytest.raises(sqlalchemy.exc.OperationalError):
            connection.exec_driver_sql("SELECT 1")
    engine.dispose()


def test_private_redis_comes_back_on_its_port(private_redis: RedisServer) -> None:
    url = private_redis.url
    private_redis.stop()
    assert not private_redis.answers()

    private_redis.start()

    assert private_redis.url == url
    assert private_redis.answers()


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_private_postgresql_comes_back_with_its_data(private_postgresql: PostgresqlServer, how: str) -> None:
    execute(private_postgresql.url, "CREATE TABLE kept (id int)")
    getattr(private_postgresql, how)()
    assert not private_postgresql.answers()

    private_postgresql.start()

    assert execute(private_postgresql.url, "SELECT count(*) FROM kept") == [(0,)]


def test_paused_redis_keeps_connections_and_is_silent(private_redis: RedisServer) -> None:
    with redis.Redis.from_url(private_redis.url, socket_timeout=0.2) as client:
        private_redis.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        private_redis.resume()
        assert client.ping()


@pytest.mark.usefixtures("private_redis", "private_postgresql")  # skipped where there are no programs
def test_killed_test_run_leaves_nothing_behind(tmp_path: Path) -> None:
    """A stand-in for pytest starts both servers and a process that ignores SIGTERM, and is killed."""
    test_run = tmp_path / "test_run.py"
    test_run.write_text(
        """
import subprocess, sys, time
from tests.reaper import Reaper
from tests.servers import own_postgresql, own_redis
reaper = Reaper()
servers = [own_redis(reaper), own_postgresql(reaper)]
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
worker = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
reaper.watch(worker.pid)
print(worker.pid, *(word for server in servers for word in (server._process.pid, server.folder)), flush=True)
time.sleep(600)
"""
    )
    root = Path(__file__).resolve().parent.parent
    with subprocess.Popen(
        [sys.executable, test_run],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        worker, redis_pid, redis_folder, postgresql_pid, postgresql_folder = process.stdout.readline().split()
        process.kill()

    def left() -> list[object]:
        pids = [pid for pid in map(int, (worker, redis_pid, postgresql_pid)) if _is_alive(pid)]
        return [*pids, *(folder for folder in (redis_folder, postgresql_folder) if Path(folder).exists())]

    eventually(lambda: not left(), message="processes and folders")


def test_reaper_leaves_forgotten_processes(reaper: Reaper) -> None:
    own = Reaper()
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        own.watch(process.pid)
        own.forget(process.pid)
        own.close()
        assert process.poll() is None
        process.kill()


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
