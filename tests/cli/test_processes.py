"""The commands as processes, with real workers, servers that are away, pipes and terminals."""

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

from jobhandle_celery import Job, JobStatus
from jobhandle_celery.migrations import REVISIONS
from tests.apps import lines_of, make_app
from tests.cli.typed import Shell
from tests.databases import migrate
from tests.support import eventually
from tests.workers import ROOT, WorkerProcess

StartWorker = Callable[..., WorkerProcess]
NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def shell(database_url: str, redis_url: str) -> Shell:
    return Shell(database_url, redis_url)


@pytest.fixture
def sqlite_shell(sqlite_url: str) -> Shell:
    """Without any server; nobody listens at its broker's."""
    return Shell(sqlite_url, NOWHERE)


@pytest.fixture
def sqlite_site(sqlite_url: str, redis_url: str, start_worker: StartWorker) -> Shell:
    """A shell, and a worker that runs what is typed."""
    start_worker(database_url=sqlite_url, broker_url=redis_url)
    return Shell(sqlite_url, redis_url)


@pytest.mark.timeout(300)
def test_a_job_is_submitted_waited_for_and_shown(
    shell: Shell, start_worker: StartWorker, database_url: str, redis_url: str
) -> None:
    start_worker(database_url=database_url, broker_url=redis_url)
    done = shell.run("submit", "tests.add", "--args", "[2, 3]", "--wait", "--json", "--timeout", "2m")
    assert (done.code, done.document["status"]) == (0, "Finished")
    failed = shell.run("submit", "tests.fail", "--args", '["no good"]', "--wait", "--timeout", "2m")
    assert (failed.code, failed.out) == (1, "job 2 is Error: ValueError: no good\n")
    assert "result     5" in shell.run("show", 1).out


@pytest.mark.timeout(300)
def test_a_job_is_watched_and_stopped(sqlite_site: Shell) -> None:
    sqlite_site.run("submit", "tests.sleep_for", "--args", "[600]")
    with sqlite_site.start("watch", 1) as watching:
        lines = iter(watching.stdout.readline, "")
        assert any(line.startswith("job 1 Running") for line in lines)
        assert sqlite_site.run("wait", 1, "--timeout", "1s").code == 4
        assert "asked to stop" in sqlite_site.run("cancel", 1).out
        assert sqlite_site.run("wait", 1, "--timeout", "2m").code == 1
        assert any(line.startswith("job 1 Cancelled") for line in lines)
        assert watching.process.wait(60) == 1


@pytest.mark.timeout(300)
def test_a_body_that_is_deaf_is_ended_and_sent_round_again(sqlite_site: Shell, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    sqlite_site.run("submit", "tests.append_then_sleep", "--args", f'["{lines}", "a", 600]')
    eventually(lambda: len(lines_of(lines)) == 1, 60)
    assert sqlite_site.run("cancel", 1, "--terminate").code == 0
    assert sqlite_site.run("wait", 1, "--timeout", "2m").code == 1
    assert sqlite_site.run("resubmit", 1).code == 0
    eventually(lambda: len(lines_of(lines)) == 2, 60)


@pytest.mark.parametrize(
    "words", [["list"], ["show", 1], ["cancel", 1], ["wait", 1], ["watch"], ["top"], ["sweep"]]
)
def test_a_database_that_is_away_is_one_line(words: list[object]) -> None:
    shell = Shell("postgresql+psycopg://nobody:secret@127.0.0.1:1/none", NOWHERE)
    answer = shell.run(*words)
    assert answer.code == 5
    assert "did not answer" in answer.error
    assert "secret" not in answer.error


def test_tables_that_are_missing_are_one_line_that_says_what_to_run(empty_database_url: str) -> None:
    shell = Shell(empty_database_url, NOWHERE)
    for words in (["list"], ["submit", "tests.add", "--args", "[1, 2]"]):
        answer = shell.run(*words)
        assert answer.code == 5
        assert "celery -A app jobs upgrade" in answer.error
    assert shell.run("upgrade", "--json").document == {"revision": REVISIONS[-1]}
    assert shell.run("list", "--json").out == ""


def test_the_printed_schema_makes_the_tables(empty_postgresql_url: str) -> None:
    settings = {"jobhandle_schema": "work"}
    shell = Shell(empty_postgresql_url, NOWHERE, settings)
    printed = shell.run("upgrade", "--sql")
    assert printed.code == 0
    engine = sqlalchemy.create_engine(empty_postgresql_url)
    assert sqlalchemy.inspect(engine).get_schema_names() == ["information_schema", "public"]
    with engine.begin() as connection:
        connection.exec_driver_sql(printed.out.replace("%", "%%"))
    assert "jobhandle_job" in sqlalchemy.inspect(engine).get_table_names(schema="work")
    engine.dispose()
    assert shell.run("list").code == 0


def test_a_broker_that_is_away_leaves_a_submitted_job_to_the_sweep(sqlite_shell: Shell) -> None:
    answer = sqlite_shell.run("submit", "tests.add", "--args", "[1, 2]")
    assert (answer.code, answer.out) == (0, "1\n")
    assert "Traceback" not in answer.err
    assert sqlite_shell.run("show", 1, "--json").document["status"] == "Submitted"


def test_an_app_without_jobs_is_one_line() -> None:
    answer = Shell(None, NOWHERE).run("list")
    assert answer.code == 2
    assert "tests has no jobs" in answer.error


def test_a_question_is_asked_on_a_terminal_and_a_no_is_one(sqlite_shell: Shell, sqlite_url: str) -> None:
    for _ in range(2):
        assert sqlite_shell.run("submit", "tests.add", "--args", "[1, 2]", "--hold").code == 0
    no = sqlite_shell.on_terminal("cancel", "--task", "tests.add", answer="n\n")
    assert "Cancel 2 jobs (task tests.add" in no.out
    assert (no.code, no.out.endswith("Error: nothing was done\n")) == (1, True)
    assert len(sqlite_shell.run("list", "--status", "waiting", "--ids").out.split()) == 2
    yes = sqlite_shell.on_terminal("cancel", "--task", "tests.add", answer="y\n")
    assert yes.code == 0
    assert sqlite_shell.run("list", "--status", "waiting", "--ids").out == ""


def test_a_terminal_gets_colours_and_a_pipe_plain_columns(sqlite_shell: Shell) -> None:
    sqlite_shell.run("submit", "tests.add", "--args", "[1, 2]", "--hold", "--message", "hello [bold]")
    assert "\x1b" not in sqlite_shell.run("list").out
    drawn = sqlite_shell.on_terminal("list").out
    assert "\x1b[" in drawn
    assert "hello [bold]" in drawn
    assert "\x1b" not in sqlite_shell.on_terminal("list", "--json").out
    sqlite_shell.environment["NO_COLOR"] = "1"
    uncoloured = sqlite_shell.on_terminal("list").out
    assert not re.search("\x1b\\[[0-9;]*3[0-7]m", uncoloured)


def test_without_rich_a_terminal_gets_plain_columns(sqlite_shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise ImportError('not installed')\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    sqlite_shell.environment["PYTHONPATH"] = path
    sqlite_shell.run("submit", "tests.add", "--args", "[1, 2]", "--hold")
    answer = sqlite_shell.on_terminal("list")
    assert answer.code == 0
    assert answer.out.splitlines()[0].startswith("ID  STATUS")


def test_a_watch_on_a_terminal_draws_until_the_job_has_ended(sqlite_shell: Shell, sqlite_url: str) -> None:
    app: Any = make_app("memory://", sqlite_url)
    handle = app.jobs.handle()
    handle.submit(Job(task="tests.add", args=[1, 2]))
    handle.set_status("Running")
    handle.set_progress(40, 100)
    handle.set_status_and_message("Finished", "all done")
    answer = sqlite_shell.on_terminal("watch", handle.job_id)
    assert answer.code == 0
    assert "40/100" in answer.out
    assert "all done" in answer.out
    app.jobs.close()


def test_top_on_a_terminal_draws_what_goes_on(sqlite_shell: Shell) -> None:
    drawn = sqlite_shell.on_terminal("top", "--times", 2, "--interval", "0.2s")
    assert drawn.code == 0
    assert "no worker is alive" in drawn.out
    assert "\x1b[" in drawn.out


@pytest.mark.parametrize("words", [["top"], ["watch"]])
def test_ctrl_c_is_how_a_live_screen_ends(sqlite_shell: Shell, sqlite_url: str, words: list[str]) -> None:
    app: Any = make_app("memory://", sqlite_url)
    handle = app.jobs.handle()
    handle.submit(Job(task="tests.add", args=[1, 2]))
    handle.set_status("Running")
    app.jobs.close()
    with sqlite_shell.start(*words, "--json") as screen:
        assert screen.stdout.readline().startswith("{")
        answer = screen.end(signal.SIGINT)
    assert (answer.code, answer.err) == (0, "")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_sweeping_process_does_what_is_due_and_ends_cleanly(
    sqlite_shell: Shell, sqlite_url: str, how: signal.Signals
) -> None:
    app: Any = make_app("memory://", sqlite_url)
    handle = app.jobs.handle()
    with sqlite_shell.start("sweep", "--forever") as sweeping:
        assert sweeping.stdout.readline().startswith("sweeping every")
        handle.submit(
            Job(task="tests.add", args=[1, 2], status=JobStatus.WAITING, expires=timedelta(seconds=0.1))
        )
        eventually(lambda: handle.job_status() is JobStatus.CANCELLED, 60)
        answer = sweeping.end(how)
    app.jobs.close()
    assert answer.code == 0
    assert "Traceback" not in answer.err


def test_a_reader_who_has_seen_enough_is_no_error(sqlite_shell: Shell, sqlite_url: str) -> None:
    app: Any = make_app("memory://", sqlite_url)
    app.jobs.submit_many([Job(task="tests.add", args=[1, 2], status=JobStatus.WAITING)] * 1000)
    app.jobs.close()
    with sqlite_shell.start("list", "--all", "--json") as listing:
        assert listing.stdout.readline().startswith("{")
        listing.stdout.close()
        assert "Traceback" not in listing.stderr.read()
        listing.process.wait(60)


def test_a_sweeping_process_outlives_an_outage_of_the_database(private_postgresql: Any) -> None:
    migrate(private_postgresql.url)
    with Shell(private_postgresql.url, NOWHERE).start("sweep", "--forever", "--json") as sweeping:
        assert sweeping.stdout.readline() == '{"made": true}\n'
        private_postgresql.kill()
        said = sweeping.stderr.readline()
        assert "did not answer" in said
        private_postgresql.start()
        # What was said before the outage, and then again.
        eventually(lambda: sweeping.stdout.readline() == '{"made": true}\n', 60)
        answer = sweeping.end(signal.SIGTERM)
    assert (answer.code, "Traceback" in answer.err) == (0, False)


def complete(shell: Shell, line: str) -> list[str]:
    """Return what Bash is offered at the end of a line, by the script that Celery prints for it."""
    words = line.split(" ")
    variables = {
        "_CELERY_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    ran = subprocess.run(
        [str(Path(sys.executable).with_name("celery"))],
        cwd=ROOT,
        env={**shell.environment, **variables},
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    return [found.partition(",")[2] for found in ran.stdout.splitlines() if found]


def test_the_shell_completes_commands_options_statuses_and_tasks(sqlite_shell: Shell) -> None:
    before = "celery -A tests.apps jobs"
    assert {"submit", "show", "sweep"} <= set(complete(sqlite_shell, f"{before} s"))
    assert "--older-than" in complete(sqlite_shell, f"{before} cancel --o")
    assert complete(sqlite_shell, f"{before} list --status fin") == ["Finished"]
    assert complete(sqlite_shell, f"{before} submit tests.sle") == ["tests.sleep_for"]
    assert "tests.add" in complete(sqlite_shell, f"{before} list --task tests.")
    assert complete(sqlite_shell, "celery -A no.such.app jobs submit t") == []
