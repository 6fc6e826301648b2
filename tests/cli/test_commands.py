"""The results, output and exit codes of the commands, within one process."""

from datetime import timedelta
from typing import Any

import pytest

from jobhandle_celery import Failure, Job, JobStatus
from jobhandle_celery.cli import jobs
from tests.apps import make_app
from tests.cli.runner import run_command
from tests.job_factory import ADD, HELD, JobFactory, age

CHANGED_FROM = {
    "cancel": JobStatus.QUEUED,
    "resubmit": JobStatus.ERROR,
    "release": JobStatus.WAITING,
}
"""The commands that change jobs, with a status that allows it."""


def job_ids(factory: JobFactory) -> list[int]:
    return [job.id for job in factory.jobs.find()]


# submit


def test_submit_prints_the_id_and_stores_all_options(sqlite_factory: JobFactory) -> None:
    options = ["--queue", "slow", "--priority", 3, "--user", "ann", "--group", "lab", "--message", "hello"]
    limits = ["--max-attempts", 2, "--unique-key", "k", "--expires", "+1h"]
    arguments = ["--args", "[1]", "--kwargs", '{"y": 2}']
    result = run_command(sqlite_factory.app, "submit", "tests.add", *arguments, *options, *limits)
    assert result.code == 0
    job = sqlite_factory.jobs.attach(int(result.out)).get_job()
    assert (job.task, job.args, job.kwargs) == ("tests.add", [1], {"y": 2})
    assert (job.queue, job.priority, job.username, job.groupname) == ("slow", 3, "ann", "lab")
    assert (job.message, job.max_attempts, job.unique_key) == ("hello", 2, "k")
    assert job.expires is not None


def test_submit_with_at_or_hold_is_waiting(sqlite_factory: JobFactory) -> None:
    def submit(*options: object) -> Any:
        arguments = ["submit", "tests.add", "--args", "[1, 2]", *options, "--json"]
        return run_command(sqlite_factory.app, *arguments).document

    scheduled, held = submit("--at", "+1h"), submit("--hold")
    assert scheduled["status"] == held["status"] == "Waiting"
    assert sqlite_factory.jobs.attach(held["id"]).get_job().held
    assert not sqlite_factory.jobs.attach(scheduled["id"]).get_job().held


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["tests.ad"], "did you mean tests.add"),
        (["tests.add", "--args", "[1]"], "args"),
        (["tests.add", "--args", "{}"], "JSON list"),
        (["tests.add", "--args", "[1, 2]", "--timeout", "1s"], "--timeout is for --wait"),
        (["tests.add", "--at", "never"], "ISO 8601"),
        (["tests.add", "--user", ""], "username"),
        ([], "TASK"),
    ],
)
def test_invalid_submit_is_refused_in_one_line(
    sqlite_factory: JobFactory, arguments: list[str], error: str
) -> None:
    result = run_command(sqlite_factory.app, "submit", *arguments)
    assert result.code == 2
    assert error in result.error
    assert job_ids(sqlite_factory) == []


def test_submit_unknown_accepts_any_task(sqlite_factory: JobFactory) -> None:
    assert run_command(sqlite_factory.app, "submit", "elsewhere.task", "--unknown").code == 0
    assert sqlite_factory.jobs.find()[0].task == "elsewhere.task"


def test_submit_and_wait_exits_by_the_final_status(sqlite_factory: JobFactory) -> None:
    app = sqlite_factory.app
    app.conf.task_always_eager = True
    finished = run_command(app, "submit", "tests.add", "--args", "[1, 2]", "--wait", "--timeout", "1m")
    failed = run_command(app, "submit", "tests.fail", "--args", '["no good"]', "--wait", "--json")
    app.conf.task_always_eager = False
    late = run_command(app, "submit", "tests.add", "--args", "[1, 2]", "--wait", "--timeout", "0s")
    assert (finished.code, finished.out) == (0, "job 1 is Finished\n")
    assert (failed.code, failed.document["error"]["type"]) == (1, "ValueError")
    assert late.code == 4


# list


def test_list_is_newest_first_in_pages(factory: JobFactory) -> None:
    factory.jobs.submit_many([ADD] * 5)
    first = run_command(factory.app, "list", "--limit", 2, "--json")
    assert [job["id"] for job in first.documents] == [5, 4]
    assert first.err == "more jobs: --before 4\n"
    second = run_command(factory.app, "list", "--limit", 3, "--before", 4, "--ids")
    assert (second.out, second.err) == ("3\n2\n1\n", "")
    assert len(run_command(factory.app, "list", "--all", "--limit", 1, "--json").documents) == 5


def test_list_filters_by_status_task_user_and_age(factory: JobFactory) -> None:
    for status in JobStatus:
        factory.job_in(status)
    with factory.jobs.handle(username="ann", groupname="lab") as handle:
        handle.submit(Job(task="tests.big_result", args=[1]))
    age(factory, 1, "submitted", timedelta(hours=2))

    def found(*filters: object) -> list[dict[str, Any]]:
        return run_command(factory.app, "list", "--json", *filters).documents

    for status in JobStatus:
        assert {job["status"] for job in found("--status", status.lower())} == {status}
    assert len(found("--status", "Error", "--status", "Waiting")) == 2
    assert [job["username"] for job in found("--user", "ann")] == ["ann"]
    assert [job["groupname"] for job in found("--group", "lab")] == ["lab"]
    assert [job["id"] for job in found("--task", "tests.big_result")] == [10]
    assert [job["id"] for job in found("--until", "1h")] == [1]
    assert 1 not in [job["id"] for job in found("--since", "1h")]
    assert len(found("--since", "3h")) == len(found("--since", "2001-01-01")) == 10
    assert found("--until", "2001-01-01T00:00Z") == []
    assert found("--since", "3h", "--until", "1h", "--user", "ann") == []
    assert found("--task", "tests.unknown") == []


def test_list_is_columns_without_control_characters(sqlite_factory: JobFactory) -> None:
    handle = sqlite_factory.jobs.handle()
    handle.submit(ADD)
    handle.set_message("red \x1b[31m alert\nsecond line")
    header, line = run_command(sqlite_factory.app, "list").out.splitlines()
    assert header.split() == ["ID", "STATUS", "TASK", "USER", "AGE", "ATTEMPT", "PROGRESS", "MESSAGE"]
    assert line.split()[:4] == ["1", "Queued", "tests.add", "-"]
    assert line.endswith("red \\x1b[31m alert second line")


# show


def test_show_prints_fields_and_history(factory: JobFactory) -> None:
    handle = factory.jobs.handle(username="ann")
    handle.submit(ADD)
    run = factory.claim(handle)
    factory.store.runs.fail(run, Failure("task", "ValueError", "no good", "Traceback: line 1"))
    output = run_command(factory.app, "show", handle.job_id).out
    for part in ("ann", "[2, 3]", "ValueError: no good (task)", "Traceback: line 1", "worker worker@host"):
        assert part in output
    document = run_command(factory.app, "show", handle.job_id, "--json").document
    assert [event["status"] for event in document["events"]] == ["Submitted", "Running", "Error"]
    assert document["error"]["traceback"] == "Traceback: line 1"
    assert document["why"] == document["events"][-1]["message"]


@pytest.mark.parametrize(
    ("status", "explanation"),
    [
        (JobStatus.WAITING, "held until release"),
        (JobStatus.QUEUED, "no worker has claimed it"),
        (JobStatus.SUBMITTED, "not published yet"),
        (JobStatus.RUNNING, "without a lease"),
        (JobStatus.CANCELLED, "cancelled before it was started"),
        (JobStatus.RESUBMITTED, "not published yet"),
        (JobStatus.REQUEUED, "not published yet"),
    ],
)
def test_show_explains_the_status(sqlite_factory: JobFactory, status: JobStatus, explanation: str) -> None:
    handle = sqlite_factory.job_in(status)
    assert explanation in run_command(sqlite_factory.app, "show", handle.job_id, "--json").document["why"]


def test_show_redacts_hidden_and_sensitive_arguments(sqlite_factory: JobFactory) -> None:
    hidden = sqlite_factory.jobs.handle()
    signature = sqlite_factory.app.tasks["tests.add"].s(123456, 654321)
    hidden.submit(signature.set(argsrepr="(***)", kwargsrepr="{}"))
    arguments = ["--args", "[123456]", "--kwargs", '{"y": 654321}', "--sensitive", "0", "--sensitive", "y"]
    sensitive = run_command(sqlite_factory.app, "submit", "tests.add", *arguments, "--json").document["id"]
    for job_id in (hidden.job_id, sensitive):
        for options in (["--json"], []):
            output = run_command(sqlite_factory.app, "show", job_id, *options).out
            assert "***" in output
            assert "123456" not in output
            assert "654321" not in output
    assert sqlite_factory.jobs.attach(sensitive).get_job().kwargs == {"y": 654321}


def test_show_shortens_long_values_without_full(sqlite_factory: JobFactory) -> None:
    handle = sqlite_factory.jobs.handle()
    handle.submit(Job(task="tests.append_line", args=["x" * 5000, "y"]))
    assert len(run_command(sqlite_factory.app, "show", handle.job_id).out) < 5000
    assert "x" * 5000 in run_command(sqlite_factory.app, "show", handle.job_id, "--full").out


# cancel, resubmit, release


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        (JobStatus.QUEUED, 0, "no worker will run it"),
        (JobStatus.RUNNING, 0, "stop requested"),
        (JobStatus.CANCELLED, 0, "no worker will run it"),
        (JobStatus.FINISHED, 1, "too late"),
        (JobStatus.ERROR, 1, "too late"),
    ],
)
def test_cancel_reports_the_status(
    sqlite_factory: JobFactory, status: JobStatus, code: int, text: str
) -> None:
    handle = sqlite_factory.job_in(status)
    result = run_command(sqlite_factory.app, "cancel", handle.job_id)
    assert (result.code, text in result.out) == (code, True)


def test_cancel_with_terminate_is_stored(factory: JobFactory) -> None:
    first, second = factory.job_in(JobStatus.RUNNING), factory.job_in(JobStatus.RUNNING)
    assert run_command(factory.app, "cancel", first.job_id, "--terminate").code == 0
    assert run_command(factory.app, "cancel", "--status", "running", "--terminate", "--yes").code == 0
    assert factory.row(first.job_id).terminate
    assert factory.row(second.job_id).terminate


@pytest.mark.parametrize("command", CHANGED_FROM)
def test_existing_ids_are_changed_and_others_reported(sqlite_factory: JobFactory, command: str) -> None:
    handles = [sqlite_factory.job_in(CHANGED_FROM[command]) for _ in range(2)]
    result = run_command(sqlite_factory.app, command, handles[0].job_id, 999, handles[1].job_id, "--json")
    assert result.code == 3
    assert result.err == "Error: no job 999\n"
    assert [document["id"] for document in result.documents] == [handle.job_id for handle in handles]
    assert all(handle.job_status() is not CHANGED_FROM[command] for handle in handles)


def test_cancel_by_filters_cancels_the_matches(factory: JobFactory) -> None:
    factory.jobs.submit_many([ADD, ADD, HELD])
    factory.jobs.submit_many([ADD], username="ann")
    age(factory, 1, "submitted", timedelta(hours=2))

    def cancelled(*filters: object) -> int:
        return int(run_command(factory.app, "cancel", *filters, "--yes", "--json").document["cancelled"])

    assert cancelled("--until", "1h") == 1
    assert run_command(factory.app, "cancel", "--status", "Waiting", "--yes").out.startswith("1 jobs")
    assert cancelled("--user", "ann") == 1
    assert [job.id for job in factory.jobs.find(status="Queued")] == [2]
    assert cancelled("--task", "tests.add") == 1
    # Without a match there is nothing to confirm.
    assert run_command(factory.app, "cancel", "--task", "tests.add", "--json").document == {"cancelled": 0}


@pytest.mark.parametrize("command", CHANGED_FROM)
def test_bulk_change_needs_filters_and_confirmation(sqlite_factory: JobFactory, command: str) -> None:
    handle = sqlite_factory.job_in(CHANGED_FROM[command])
    by_task = ["--task", "tests.add"]
    for arguments in ([], ["--yes"], by_task, [handle.job_id, *by_task, "--yes"]):
        result = run_command(sqlite_factory.app, command, *arguments)
        assert result.code == 2
        assert result.error.startswith("Error: ")
    assert handle.job_status() is CHANGED_FROM[command]
    assert run_command(sqlite_factory.app, command, *by_task, "--yes").code == 0
    assert handle.job_status() is not CHANGED_FROM[command]


def test_resubmit_by_filters_selects_jobs_in_error(sqlite_factory: JobFactory) -> None:
    error, cancelled = sqlite_factory.job_in(JobStatus.ERROR), sqlite_factory.job_in(JobStatus.CANCELLED)
    assert run_command(sqlite_factory.app, "resubmit", "--task", "tests.add", "--yes").code == 0
    assert [error.job_status(), cancelled.job_status()] == [JobStatus.QUEUED, JobStatus.CANCELLED]
    assert run_command(sqlite_factory.app, "resubmit", "--status", "cancelled", "--yes").code == 0
    assert cancelled.job_status() is JobStatus.QUEUED


@pytest.mark.parametrize("command", ["resubmit", "release"])
def test_forbidden_move_is_reported_in_one_line(sqlite_factory: JobFactory, command: str) -> None:
    handle = sqlite_factory.job_in(JobStatus.QUEUED)
    result = run_command(sqlite_factory.app, command, handle.job_id)
    assert result.code == 1
    assert f"job {handle.job_id}" in result.error
    assert "Queued" in result.error


# wait, watch


def test_wait_exits_by_the_final_statuses(sqlite_factory: JobFactory) -> None:
    app = sqlite_factory.app
    finished, error, queued = (
        sqlite_factory.job_in(status).job_id
        for status in (JobStatus.FINISHED, JobStatus.ERROR, JobStatus.QUEUED)
    )
    assert run_command(app, "wait", finished).code == 0
    both = run_command(app, "wait", finished, error, "--json")
    assert (both.code, [job["status"] for job in both.documents]) == (1, ["Finished", "Error"])
    late = run_command(app, "wait", queued, "--timeout", "0s")
    assert (late.code, late.error) == (4, f"Error: job {queued} is Queued after 0s")
    assert run_command(app, "wait", 999).code == 3
    assert run_command(app, "wait").code == 2


def test_watch_ends_when_its_jobs_are_final(sqlite_factory: JobFactory) -> None:
    app = sqlite_factory.app
    finished, error = (
        sqlite_factory.job_in(status).job_id for status in (JobStatus.FINISHED, JobStatus.ERROR)
    )
    both = run_command(app, "watch", finished, error)
    assert both.code == 1
    assert both.out.splitlines() == [
        f"job {finished} Finished: from the importer",
        f"job {error} Error: ValueError: no good",
    ]
    assert run_command(app, "watch", finished, "--json").document["status"] == "Finished"
    assert run_command(app, "watch", 999).code == 3


# sweep, prune


def test_sweep_is_skipped_within_an_interval(sqlite_factory: JobFactory) -> None:
    settings = {"jobhandle_lease": 3600, "jobhandle_sweep_interval": 60}
    app: Any = make_app("memory://", sqlite_factory.url, settings)
    assert run_command(app, "sweep", "--json").document == {"made": True}
    assert run_command(app, "sweep", "--json").document == {"made": False}
    assert run_command(app, "sweep").out.startswith("skipped: ")
    app.jobs.close()


def test_prune_deletes_old_final_jobs(sqlite_factory: JobFactory) -> None:
    old, new = (sqlite_factory.job_in(JobStatus.FINISHED).job_id for _ in range(2))
    age(sqlite_factory, old, "finished", timedelta(days=31))
    prune = ["prune", "--older-than", "30d"]
    assert run_command(sqlite_factory.app, *prune).code == 2
    assert run_command(sqlite_factory.app, *prune, "--yes", "--json").document == {"pruned": 1}
    assert job_ids(sqlite_factory) == [new]
    assert run_command(sqlite_factory.app, "prune", "--yes").code == 2


# help


def test_help_of_every_command_is_complete(sqlite_url: str) -> None:
    """The reference of the command line is generated from it."""
    app: Any = make_app("memory://", sqlite_url)
    for name, command in jobs.commands.items():
        result = run_command(app, name, "--help")
        assert result.code == 0
        assert command.help
        for part in (f"celery -A shop jobs {name}", "Exit codes: 0", "--json", "Print JSON"):
            assert part in result.out
        for parameter in command.params:
            assert parameter.param_type_name == "argument" or getattr(parameter, "help", None), parameter
    assert "  4  the timeout expired" in run_command(app, "--help").out
    app.jobs.close()
