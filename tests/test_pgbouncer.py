"""Jobs through a PgBouncer in transaction mode, which assigns a connection to each transaction."""

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from jobhandle_celery import Job, JobStatus
from tests.apps import make_app
from tests.servers import ServerMissing, absent
from tests.servers.places import free_port, program
from tests.support import eventually

PROGRAM = program("pgbouncer")
ADD = Job(task="tests.add", args=[1, 2])


@pytest.fixture
def bouncer_url(postgresql_url: str, tmp_path: Path) -> Iterator[str]:
    """The same database, by a PgBouncer with two connections to it."""
    with absent.skip_or_fail("pgbouncer"):
        if PROGRAM is None:
            raise ServerMissing("no pgbouncer on the PATH")
    there = sqlalchemy.make_url(postgresql_url)
    here = there.set(host="127.0.0.1", port=free_port(), password=None, database="jobs", query={})
    names = {"host": there.host, "port": there.port, "dbname": there.database}
    names |= {"user": there.username, "password": there.password}
    server = " ".join(f"{name}={value}" for name, value in names.items() if value)
    configuration = tmp_path / "pgbouncer.ini"
    configuration.write_text(
        f"""[databases]
jobs = {server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {here.port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
"""
    )
    command = [PROGRAM, str(configuration)]
    if os.geteuid() == 0:  # it refuses to be root
        command[1:1] = ["--user=nobody"]
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: _answers(here), message="PgBouncer")
        yield here.render_as_string(hide_password=False)
    finally:
        process.terminate()
        process.wait(20)


def _answers(url: sqlalchemy.URL) -> bool:
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect():
            return True
    except sqlalchemy.exc.OperationalError:
        return False
    finally:
        engine.dispose()


def connection_of(jobs: Any) -> tuple[Any, Any]:
    """Whether its session is limited for good, and after how many executions a statement is prepared."""
    with jobs._runtime.store.database.engine.connect() as connection:
        driver = connection.connection.dbapi_connection
        return connection.info.get("jobhandle_limited"), driver.prepare_threshold


def test_jobs_run_to_their_end_over_a_few_shared_connections(bouncer_url: str, postgresql_url: str) -> None:
    jobs: Any = make_app("memory://", bouncer_url).jobs  # type: ignore[attr-defined]  # put there by Jobs

    def lives(_: int) -> list[JobStatus]:
        handle, seen = jobs.handle(), []
        for _ in range(10):
            handle.submit(ADD)
            handle.set_message("under way")
            handle.set_status("Running")
            handle.set_progress(1, 2)
            handle.set_status("Finished")
            seen.append(handle.wait(10))
            handle.resubmit_job()
            seen.append(handle.cancel_job())
        return seen

    with ThreadPoolExecutor(8) as pool:
        for seen in pool.map(lives, range(8)):
            assert seen == [JobStatus.FINISHED, JobStatus.CANCELLED] * 10
    assert len(jobs.submit_many([ADD] * 1500)) == 1500
    assert jobs.cancel_many(task="tests.add") == 1500

    # Nothing is left in the shared sessions.
    assert connection_of(jobs) == (None, None)
    direct: Any = make_app("memory://", postgresql_url).jobs  # type: ignore[attr-defined]  # as above
    limited, threshold = connection_of(direct)
    assert limited
    assert threshold > 0
    for each in (jobs, direct):
        each.close()
