"""Commands as processes: real workers, unavailable servers, pipes, signals and terminals."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from celery.bin.celery import celery
from click.shell_completion import BashComplete

from jobhandle_celery import Job, JobHandle, Jobs, JobStatus
from jobhandle_celery.migrations import REVISIONS
from tests.apps import lines_of
from tests.cli.runner import Shell
from tests.databases import migrate
from tests.job_factory import NOBODY_LISTENS
from tests.support import eventually
from tests.workers import ROOT, WorkerProcess

StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
def shell(sqlite_url: str) -> Shell:
    """A shell without any server: its broker is down."""
    return Shell(sqlite_url, NOBODY_LISTENS)


@pytest.fixture
def shell_with_worker(sqlite_url: str, redis_url: str, start_worker: StartWorker) -> Shell:
    start_worker(database_url=sqlite_url, broker_url=redis_url)
    return Shell(sqlite_url, redis_url)


@pytest.fixture
def jobs(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    """The jobs of the shell, in this process."""
    return make_jobs_app(sqlite_url).jobs


@pytest.fixture
def running(jobs: Jobs) -> JobHandle:
    """A running job without a worker."""
    handle = jobs.handle()
    handle.submit(Job(task="tests.add", args=[1, 2]))
    handle.set_status("Running")
    return handle


# With a worker.


def test_jobs_are_submitted_waited_for_and_shown(
    postgresql_url: str, redis_url: str, start_worker: StartWorker
) -> None:
    shell = Shell(postgresql_url, redis_url)
    start_worker(database_url=postgresql_url, broker_url=redis_url)
    done = shell.run("submit", "tests.add", "--args", "[2, 3]", "--wait", "--json", "--timeout", "2m")
    assert (done.code, done.document["status"]) == (0, "Finished")
    failed = shell.run("submit", "tests.fail", "--args", '["no good"]', "--wait", "--timeout", "2m")
    assert (failed.code, failed.out) == (1, "job 2 is Error: ValueError: no good\n")
    assert re.search("result +5", shell.run("show", 1).out)


def test_running_job_is_watched_and_cancelled(shell_with_worker: Shell) -> None:
    shell_with_worker.run("submit", "tests.sleep_for", "--args", "[600]")
    with shell_with_worker.start("watch", 1) as watching:
        lines = iter(watching.stdout.readline, "")
        assert any(line.startswith("job 1 Running") for line in lines)
        assert shell_with_worker.run("wait", 1, "--timeout", "1s").code == 4
        assert "stop requested" in shell_with_worker.run("cancel", 1).out
        assert shell_with_worker.run("wait", 1, "--timeout", "2m").code == 1
        assert any(line.startswith("job 1 Cancelled") for line in lines)
        assert watching.process.wait(60) == 1


def test_deaf_job_is_terminated_and_resubmitted(shell_with_worker: Shell, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    arguments = f'["{lines}", "a", 600]'
    shell_with_worker.run("submit", "tests.append_then_sleep", "--args", arguments)
    eventually(lambda: len(lines_of(lines)) == 1)
    assert shell_with_worker.run("cancel", 1, "--terminate").code == 0
    assert shell_with_worker.run("wait", 1, "--timeout", "2m").code == 1
    assert shell_with_worker.run("resubmit", 1).code == 0
    eventually(lambda: len(lines_of(lines)) == 2)


# Without servers, tables or jobs.


@pytest.mark.parametrize(
    "arguments", [["list"], ["show", 1], ["cancel", 1], ["wait", 1], ["watch"], ["top"], ["sweep"]]
)
def test_unavailable_database_is_one_line(arguments: list[object]) -> None:
    url = "postgresql+psycopg://nobody:secret@127.0.0.1:1/none"
    result = Shell(url, NOBODY_LISTENS).run(*arguments)
    assert result.code == 5
    assert "did not answer" in result.error
    assert "secret" not in result.error


def test_missing_tables_are_one_line_that_names_upgrade(empty_database_url: str) -> None:
    shell = Shell(empty_database_url, NOBODY_LISTENS)
    for arguments in (["list"], ["submit", "tests.add", "--args", "[1, 2]"]):
        result = shell.run(*arguments)
        assert result.code == 5
        assert "celery -A app jobs upgrade" in result.error
    assert shell.run("upgrade", "--json").document == {"revision": REVISIONS[-1]}
    assert shell.run("list", "--json").out == ""


def test_upgrade_sql_creates_the_tables(empty_postgresql_url: str) -> None:
    shell = Shell(empty_postgresql_url, NOBODY_LISTENS, {"jobhandle_schema": "work"})
    printed = shell.run("upgrade", "--sql")
    assert printed.code == 0
    engine = sqlalchemy.create_engine(empty_postgresql_url)
    assert sqlalchemy.inspect(engine).get_schema_names() == ["information_schema", "public"]
    with engine.begin() as connection:
        connection.exec_driver_sql(printed.out.replace("%", "%%"))
    assert "jobhandle_job" in sqlalchemy.inspect(engine).get_table_names(schema="work")
    engine.dispose()
    assert shell.run("list").code == 0


def execute(database_url: str, printed: str) -> None:
    """Execute printed statements one by one, as the client of a database does."""
    engine = sqlalchemy.create_engine(database_url)
    lines = [line for line in printed.splitlines() if not line.startswith("--")]
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in "\n".join(lines).split(";\n"):
            if statement.strip() not in ("", "BEGIN", "COMMIT"):
                connection.exec_driver_sql(statement.replace("%", "%%"))
    engine.dispose()


def test_printed_statements_upgrade_the_tables_that_are_there(empty_database_url: str) -> None:
    shell = Shell(empty_database_url, NOBODY_LISTENS)
    printed = shell.run("upgrade", "--sql")
    former, later = printed.out.split("-- Running upgrade 0001 -> 0002")
    execute(empty_database_url, former + "\n")
    assert "are at revision 0001" in shell.run("list").error
    printed = shell.run("upgrade", "--sql")
    assert (printed.code, printed.out) == (0, shell.run("upgrade", "--sql", "--from", "0001").out)
    assert printed.out.count("CREATE TABLE") == later.count("CREATE TABLE") == 1
    execute(empty_database_url, printed.out)
    assert shell.run("submit", "tests.add", "--args", "[1, 2]").code == 0
    printed = shell.run("upgrade", "--sql")
    assert printed.code == 0
    assert "TABLE" not in printed.out
    execute(empty_database_url, printed.out)
    assert shell.run("list").code == 0


def test_printed_statements_of_a_revision_need_no_database() -> None:
    shell = Shell("postgresql+psycopg://nobody@127.0.0.1:1/jobs", NOBODY_LISTENS)
    assert "Running upgrade  -> 0001" in shell.run("upgrade", "--sql", "--from", "base").out
    assert "CREATE TABLE jobhandle_job (" not in shell.run("upgrade", "--sql", "--from", "0001").out
    assert shell.run("upgrade", "--sql").code == 5
    assert "--from needs --sql" in shell.run("upgrade", "--from", "0001").error
    assert shell.run("upgrade", "--sql", "--from", "7").code == 2


def test_submit_without_a_broker_is_left_to_the_sweep(shell: Shell) -> None:
    result = shell.run("submit", "tests.add", "--args", "[1, 2]")
    assert (result.code, result.out) == (0, "1\n")
    assert "Traceback" not in result.err
    assert shell.run("show", 1, "--json").document["status"] == "Submitted"


def test_app_without_jobs_is_one_line() -> None:
    result = Shell(None, NOBODY_LISTENS).run("list")
    assert result.code == 2
    assert "the app tests has no Jobs" in result.error


# Terminals and pipes.


def test_confirmation_is_asked_on_a_terminal(shell: Shell, jobs: Jobs) -> None:
    jobs.submit_many([Job(task="tests.add", args=[1, 2], status=JobStatus.WAITING)] * 2)
    declined = shell.on_terminal("cancel", "--task", "tests.add", answer="n\n")
    assert "Cancel 2 jobs (task tests.add" in declined.out
    assert (declined.code, declined.out.endswith("Error: declined; nothing was changed\n")) == (1, True)
    assert {job.status for job in jobs.find()} == {JobStatus.WAITING}
    assert shell.on_terminal("cancel", "--task", "tests.add", answer="y\n").code == 0
    assert {job.status for job in jobs.find()} == {JobStatus.CANCELLED}


def test_terminal_has_colours_and_pipe_plain_columns(shell: Shell) -> None:
    shell.run("submit", "tests.add", "--args", "[1, 2]", "--hold", "--message", "hello [bold]")
    assert "\x1b" not in shell.run("list").out
    coloured = shell.on_terminal("list").out
    assert "\x1b[" in coloured
    assert "hello [bold]" in coloured
    assert "\x1b" not in shell.on_terminal("list", "--json").out
    shell.environment["NO_COLOR"] = "1"
    assert not re.search("\x1b\\[[0-9;]*3[0-7]m", shell.on_terminal("list").out)


def test_terminal_without_rich_has_plain_columns(shell: Shell, running: JobHandle, tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise ImportError('not installed')\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    shell.environment["PYTHONPATH"] = path
    result = shell.on_terminal("list")
    assert result.code == 0
    assert result.out.splitlines()[0].startswith("ID  STATUS")


def test_watch_on_a_terminal_redraws_until_the_end(shell: Shell, running: JobHandle) -> None:
    running.set_progress(40, 100)
    running.set_status_and_message("Finished", "all done")
    result = shell.on_terminal("watch", running.job_id)
    assert result.code == 0
    assert "40/100" in result.out
    assert "all done" in result.out


def test_top_on_a_terminal_redraws(shell: Shell) -> None:
    result = shell.on_terminal("top", "--times", 2, "--interval", "0.2s")
    assert result.code == 0
    assert "no worker is alive" in result.out
    assert "\x1b[" in result.out


@pytest.mark.parametrize("command", ["top", "watch"])
def test_ctrl_c_ends_a_live_display(shell: Shell, running: JobHandle, command: str) -> None:
    with shell.start(command, "--json") as display:
        assert display.stdout.readline().startswith("{")
        result = display.end(signal.SIGINT)
    assert (result.code, result.err) == (0, "")


def test_reader_that_closes_the_pipe_is_no_error(shell: Shell, jobs: Jobs) -> None:
    jobs.submit_many([Job(task="tests.add", args=[1, 2], status=JobStatus.WAITING)] * 1000)
    with shell.start("list", "--all", "--json") as listing:
        assert listing.stdout.readline().startswith("{")
        listing.stdout.close()
        assert "Traceback" not in listing.stderr.read()
        listing.process.wait(60)


# sweep --forever


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_sweep_forever_sweeps_until_a_signal(shell: Shell, jobs: Jobs, signal_number: signal.Signals) -> None:
    handle = jobs.handle()
    expires = timedelta(seconds=0.1)
    with shell.start("sweep", "--forever") as sweeping:
        assert sweeping.stdout.readline().startswith("sweeping every")
        handle.submit(Job(task="tests.add", args=[1, 2], status=JobStatus.WAITING, expires=expires))
        eventually(lambda: handle.job_status() is JobStatus.CANCELLED)
        result = sweeping.end(signal_number)
    assert result.code == 0
    assert "Traceback" not in result.err


@pytest.mark.faults
def test_sweep_forever_survives_an_outage_of_the_database(private_postgresql: Any) -> None:
    migrate(private_postgresql.url)
    with Shell(private_postgresql.url, NOBODY_LISTENS).start("sweep", "--forever", "--json") as sweeping:
        assert sweeping.stdout.readline() == '{"made": true}\n'
        private_postgresql.kill()
        assert "did not answer" in sweeping.stderr.readline()
        private_postgresql.start()
        # First the lines from before the outage, then new ones.
        eventually(lambda: sweeping.stdout.readline() == '{"made": true}\n')
        result = sweeping.end(signal.SIGTERM)
    assert (result.code, "Traceback" in result.err) == (0, False)


# Completion.


def complete(line: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what Bash offers at the end of a line; Celery's own script does the same in a process."""
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    offered = BashComplete(celery, {}, "celery", "_CELERY_COMPLETE").complete()
    return [found.partition(",")[2] for found in offered.splitlines() if found]


def test_shell_completes_commands_options_statuses_and_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = "celery -A tests.apps jobs"
    monkeypatch.setenv("JOBHANDLE_TEST_BROKER_URL", NOBODY_LISTENS)
    assert {"submit", "show", "sweep"} <= set(complete(f"{prefix} s", monkeypatch))
    assert "--until" in complete(f"{prefix} cancel --u", monkeypatch)
    assert complete(f"{prefix} list --status fin", monkeypatch) == ["Finished"]
    assert complete(f"{prefix} submit tests.sle", monkeypatch) == ["tests.sleep_for"]
    assert "tests.add" in complete(f"{prefix} list --task tests.", monkeypatch)
    assert complete("celery -A no.such.app jobs submit t", monkeypatch) == []


def test_celery_script_completes_tasks(shell: Shell) -> None:
    variables = {
        "_CELERY_COMPLETE": "bash_complete",
        "COMP_WORDS": "celery -A tests.apps jobs submit tests.sle",
        "COMP_CWORD": "5",
    }
    completed = subprocess.run(
        [str(Path(sys.executable).with_name("celery"))],
        cwd=ROOT,
        env={**shell.environment, **variables},
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert completed.stdout == "plain,tests.sleep_for\n"
