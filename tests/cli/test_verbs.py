"""What each command does, prints and ends with, within one process."""

from datetime import timedelta
from typing import Any

import pytest

from jobhandle_celery import Failure, Job, JobStatus
from jobhandle_celery.cli import jobs
from tests.apps import make_app
from tests.cli.typed import typed
from tests.test_handle import ADD, HELD, Stage
from tests.test_jobs import age


def ids(stage: Stage) -> list[int]:
    return [job.id for job in stage.jobs.find()]


# submit


def test_submit_prints_the_id_and_passes_on_what_was_given(stage: Stage) -> None:
    options = ["--queue", "slow", "--priority", 3, "--user", "ann", "--group", "lab", "--message", "hello"]
    limits = ["--max-attempts", 2, "--unique-key", "k", "--expires", "+1h"]
    answer = typed(
        stage.app, "submit", "tests.add", "--args", "[1]", "--kwargs", '{"y": 2}', *options, *limits
    )
    assert answer.code == 0
    job = stage.jobs.attach(int(answer.out)).get_job()
    assert (job.task, job.args, job.kwargs) == ("tests.add", [1], {"y": 2})
    assert (job.queue, job.priority, job.username, job.groupname) == ("slow", 3, "ann", "lab")
    assert (job.message, job.max_attempts, job.unique_key) == ("hello", 2, "k")
    assert job.expires is not None


def test_submit_keeps_a_job_for_its_time_or_until_it_is_released(stage: Stage) -> None:
    at = typed(stage.app, "submit", "tests.add", "--args", "[1, 2]", "--at", "+1h", "--json").document
    held = typed(stage.app, "submit", "tests.add", "--args", "[1, 2]", "--hold", "--json").document
    assert at["status"] == held["status"] == "Waiting"
    assert stage.jobs.attach(held["id"]).get_job().held
    assert not stage.jobs.attach(at["id"]).get_job().held


@pytest.mark.parametrize(
    ("words", "said"),
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
def test_wrong_input_is_one_line_and_leaves_no_trace(stage: Stage, words: list[str], said: str) -> None:
    answer = typed(stage.app, "submit", *words)
    assert answer.code == 2
    assert said in answer.error
    assert ids(stage) == []


def test_a_task_of_others_is_submitted_if_that_is_meant(stage: Stage) -> None:
    assert typed(stage.app, "submit", "elsewhere.task", "--unknown").code == 0
    assert stage.jobs.find()[0].task == "elsewhere.task"


def test_submit_and_wait_ends_as_the_job_does(stage: Stage) -> None:
    stage.app.conf.task_always_eager = True
    good = typed(stage.app, "submit", "tests.add", "--args", "[1, 2]", "--wait", "--timeout", "1m")
    bad = typed(stage.app, "submit", "tests.fail", "--args", '["no good"]', "--wait", "--json")
    stage.app.conf.task_always_eager = False
    late = typed(stage.app, "submit", "tests.add", "--args", "[1, 2]", "--wait", "--timeout", "0s")
    assert (good.code, good.out) == (0, "job 1 is Finished\n")
    assert (bad.code, bad.document["error"]["type"]) == (1, "ValueError")
    assert late.code == 4


# list


def test_list_shows_the_newest_first_and_by_pages(stage: Stage) -> None:
    stage.jobs.submit_many([ADD] * 5)
    first = typed(stage.app, "list", "--limit", 2, "--json")
    assert [job["id"] for job in first.documents] == [5, 4]
    assert first.err == "more: --before 4\n"
    second = typed(stage.app, "list", "--limit", 3, "--before", 4, "--ids")
    assert (second.out, second.err) == ("3\n2\n1\n", "")
    assert len(typed(stage.app, "list", "--all", "--limit", 1, "--json").documents) == 5


def test_list_finds_by_status_task_user_and_age(stage: Stage) -> None:
    for status in JobStatus:
        stage.job_in(status)
    with stage.jobs.handle(username="ann") as handle:
        handle.submit(Job(task="tests.big_result", args=[1]))
    age(stage, 1, "submitted", timedelta(hours=2))

    def found(*words: object) -> list[dict[str, Any]]:
        return typed(stage.app, "list", "--json", *words).documents

    for status in JobStatus:
        assert {job["status"] for job in found("--status", status.lower())} == {status}
    assert len(found("--status", "Error", "--status", "Waiting")) == 2
    assert [job["username"] for job in found("--user", "ann")] == ["ann"]
    assert [job["id"] for job in found("--task", "tests.big_result")] == [10]
    assert [job["id"] for job in found("--older-than", "1h")] == [1]
    assert 1 not in [job["id"] for job in found("--since", "1h")]
    assert len(found("--since", "3h")) == 10
    assert found("--since", "3h", "--older-than", "1h", "--user", "ann") == []
    assert found("--task", "tests.unknown") == []


def test_a_list_is_columns_and_its_messages_are_harmless(stage: Stage) -> None:
    handle = stage.jobs.handle()
    handle.submit(ADD)
    handle.set_message("red \x1b[31m alert\nsecond line")
    header, line = typed(stage.app, "list").out.splitlines()
    assert header.split() == ["ID", "STATUS", "TASK", "USER", "AGE", "TRY", "PROGRESS", "MESSAGE"]
    assert line.split()[:4] == ["1", "Queued", "tests.add", "-"]
    assert line.endswith("red \\x1b[31m alert second line")


# show


def test_show_tells_everything_and_the_history(stage: Stage) -> None:
    handle = stage.jobs.handle(username="ann")
    handle.submit(ADD)
    run = stage.claim(handle)
    stage.store.fail(run, Failure("task", "ValueError", "no good", "Traceback: line 1"))
    said = typed(stage.app, "show", handle.job_id).out
    for part in ("ann", "[2, 3]", "ValueError: no good (task)", "Traceback: line 1", "worker worker@host"):
        assert part in said
    document = typed(stage.app, "show", handle.job_id, "--json").document
    assert [event["status"] for event in document["events"]] == ["Submitted", "Running", "Error"]
    assert document["error"]["traceback"] == "Traceback: line 1"
    assert document["why"] == document["events"][-1]["message"]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (JobStatus.WAITING, "held until somebody releases it"),
        (JobStatus.QUEUED, "the broker has its message"),
        (JobStatus.SUBMITTED, "not with the broker yet"),
        (JobStatus.RUNNING, "without a lease"),
        (JobStatus.CANCELLED, "cancelled before it was started"),
        (JobStatus.RESUBMITTED, "not with the broker yet"),
        (JobStatus.REQUEUED, "not with the broker yet"),
    ],
)
def test_show_says_why(stage: Stage, status: JobStatus, said: str) -> None:
    handle = stage.job_in(status)
    assert said in typed(stage.app, "show", handle.job_id, "--json").document["why"]


def test_show_hides_what_its_submitter_hid(stage: Stage) -> None:
    handle = stage.jobs.handle()
    handle.submit(stage.app.tasks["tests.add"].s(123456, 654321).set(argsrepr="(***)", kwargsrepr="{}"))
    for words in (["--json"], []):
        said = typed(stage.app, "show", handle.job_id, *words).out
        assert "(***)" in said
        assert "123456" not in said


def test_a_sensitive_argument_is_not_shown(stage: Stage) -> None:
    words = ["--args", "[123456]", "--kwargs", '{"y": 654321}', "--sensitive", "0", "--sensitive", "y"]
    job_id = typed(stage.app, "submit", "tests.add", *words, "--json").document["id"]
    for shown in (typed(stage.app, "show", job_id, "--json").out, typed(stage.app, "show", job_id).out):
        assert "***" in shown
        assert "123456" not in shown
        assert "654321" not in shown
    assert stage.jobs.attach(job_id).get_job().kwargs == {"y": 654321}


def test_a_long_value_is_shown_in_full_on_request(stage: Stage) -> None:
    handle = stage.jobs.handle()
    handle.submit(Job(task="tests.append_line", args=["x" * 5000, "y"]))
    assert len(typed(stage.app, "show", handle.job_id).out) < 5000
    assert "x" * 5000 in typed(stage.app, "show", handle.job_id, "--full").out


# cancel, resubmit, release


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (JobStatus.QUEUED, 0, "no worker will run it"),
        (JobStatus.RUNNING, 0, "asked to stop"),
        (JobStatus.CANCELLED, 0, "no worker will run it"),
        (JobStatus.FINISHED, 1, "too late"),
        (JobStatus.ERROR, 1, "too late"),
    ],
)
def test_cancel_says_what_it_came_to(stage: Stage, status: JobStatus, code: int, said: str) -> None:
    handle = stage.job_in(status)
    answer = typed(stage.app, "cancel", handle.job_id)
    assert (answer.code, said in answer.out) == (code, True)


def test_cancel_and_terminate_is_kept_in_the_row(stage: Stage) -> None:
    one, other = stage.job_in(JobStatus.RUNNING), stage.job_in(JobStatus.RUNNING)
    assert typed(stage.app, "cancel", one.job_id, "--terminate").code == 0
    assert typed(stage.app, "cancel", "--status", "running", "--terminate", "--yes").code == 0
    assert stage.row(one.job_id).terminate
    assert stage.row(other.job_id).terminate


@pytest.mark.parametrize("verb", ["cancel", "resubmit", "release"])
def test_the_ids_that_there_are_are_done_and_the_others_named(stage: Stage, verb: str) -> None:
    status = {"cancel": JobStatus.QUEUED, "resubmit": JobStatus.ERROR, "release": JobStatus.WAITING}[verb]
    handles = [stage.job_in(status) for _ in range(2)]
    answer = typed(stage.app, verb, handles[0].job_id, 999, handles[1].job_id, "--json")
    assert answer.code == 3
    assert answer.err == "Error: no job 999\n"
    assert [document["id"] for document in answer.documents] == [handle.job_id for handle in handles]
    assert all(handle.job_status() is not status for handle in handles)


def test_cancel_by_filters_takes_those_that_fit(stage: Stage) -> None:
    stage.jobs.submit_many([ADD, ADD, HELD])
    stage.jobs.submit_many([ADD], username="ann")
    age(stage, 1, "submitted", timedelta(hours=2))
    assert typed(stage.app, "cancel", "--older-than", "1h", "--yes", "--json").document == {"cancelled": 1}
    assert typed(stage.app, "cancel", "--status", "Waiting", "--yes").out.startswith("1 jobs")
    assert typed(stage.app, "cancel", "--user", "ann", "--yes", "--json").document == {"cancelled": 1}
    assert [job.id for job in stage.jobs.find(status="Queued")] == [2]
    assert typed(stage.app, "cancel", "--task", "tests.add", "--yes", "--json").document == {"cancelled": 1}
    assert typed(stage.app, "cancel", "--task", "tests.add", "--json").document == {"cancelled": 0}


@pytest.mark.parametrize("verb", ["cancel", "resubmit", "release"])
def test_a_bulk_verb_does_nothing_without_filters_or_without_a_yes(stage: Stage, verb: str) -> None:
    status = {"cancel": JobStatus.QUEUED, "resubmit": JobStatus.ERROR, "release": JobStatus.WAITING}[verb]
    handle = stage.job_in(status)
    for words in ([], ["--yes"], ["--task", "tests.add"], [handle.job_id, "--task", "tests.add", "--yes"]):
        answer = typed(stage.app, verb, *words)
        assert answer.code == 2
        assert answer.error.startswith("Error: ")
    assert handle.job_status() is status
    assert typed(stage.app, verb, "--task", "tests.add", "--yes").code == 0
    assert handle.job_status() is not status


def test_resubmit_by_filters_takes_those_in_error(stage: Stage) -> None:
    handles = {status: stage.job_in(status) for status in (JobStatus.ERROR, JobStatus.CANCELLED)}
    assert typed(stage.app, "resubmit", "--task", "tests.add", "--yes").code == 0
    assert [handle.job_status() for handle in handles.values()] == [JobStatus.QUEUED, JobStatus.CANCELLED]
    assert typed(stage.app, "resubmit", "--status", "cancelled", "--yes").code == 0
    assert handles[JobStatus.CANCELLED].job_status() is JobStatus.QUEUED


@pytest.mark.parametrize(("verb", "said"), [("resubmit", "only a final job"), ("release", "not Waiting")])
def test_a_move_that_the_status_forbids_is_told(stage: Stage, verb: str, said: str) -> None:
    handle = stage.job_in(JobStatus.QUEUED)
    answer = typed(stage.app, verb, handle.job_id)
    assert answer.code == 1
    assert said in answer.error


# wait, watch


def test_wait_ends_as_the_jobs_do(stage: Stage) -> None:
    finished, error = stage.job_in(JobStatus.FINISHED), stage.job_in(JobStatus.ERROR)
    queued = stage.job_in(JobStatus.QUEUED)
    assert typed(stage.app, "wait", finished.job_id).code == 0
    bad = typed(stage.app, "wait", finished.job_id, error.job_id, "--json")
    assert (bad.code, [job["status"] for job in bad.documents]) == (1, ["Finished", "Error"])
    late = typed(stage.app, "wait", queued.job_id, "--timeout", "0s")
    assert (late.code, late.error) == (4, f"Error: job {queued.job_id} is Queued after 0s")
    assert typed(stage.app, "wait", 999).code == 3
    assert typed(stage.app, "wait").code == 2


def test_watch_ends_when_its_jobs_have(stage: Stage) -> None:
    finished, error = stage.job_in(JobStatus.FINISHED), stage.job_in(JobStatus.ERROR)
    answer = typed(stage.app, "watch", finished.job_id, error.job_id)
    assert answer.code == 1
    assert answer.out.splitlines() == [
        f"job {finished.job_id} Finished: from the importer",
        f"job {error.job_id} Error: ValueError: no good",
    ]
    assert typed(stage.app, "watch", finished.job_id, "--json").document["status"] == "Finished"
    assert typed(stage.app, "watch", 999).code == 3


# sweep, prune, upgrade


def test_sweep_makes_one_pass_at_a_time(stage: Stage) -> None:
    slow: Any = make_app("memory://", stage.url, {"jobhandle_lease": 3600, "jobhandle_sweep_interval": 60})
    assert typed(slow, "sweep", "--json").document == {"made": True}
    assert typed(slow, "sweep", "--json").document == {"made": False}
    assert typed(slow, "sweep").out.startswith("no pass was made")
    slow.jobs.close()


def test_prune_deletes_what_ended_long_ago(stage: Stage) -> None:
    handles = [stage.job_in(JobStatus.FINISHED) for _ in range(2)]
    age(stage, handles[0].job_id, "finished", timedelta(days=31))
    assert typed(stage.app, "prune", "--older-than", "30d").code == 2
    assert typed(stage.app, "prune", "--older-than", "30d", "--yes", "--json").document == {"pruned": 1}
    assert ids(stage) == [handles[1].job_id]
    assert typed(stage.app, "prune", "--yes").code == 2


# help


def test_every_command_has_help_with_examples_and_says_its_exit_codes(stage: Stage) -> None:
    for name, command in jobs.commands.items():
        answer = typed(stage.app, name, "--help")
        assert answer.code == 0
        assert f"celery -A shop jobs {name}" in answer.out
        assert "Exit codes: 0" in answer.out
        assert command.help
        assert "--json" in answer.out
    assert "  4  not within the time given" in typed(stage.app, "--help").out
