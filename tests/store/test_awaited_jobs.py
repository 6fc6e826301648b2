"""What a poll for waits reads: which jobs have ended, and how."""

from jobhandle_celery import JobStatus
from jobhandle_celery.store.snapshots import FinalJob, JobOutcome
from tests.store.harness import FAILURE, Harness


def test_final_returns_ended_and_missing_jobs_alone(harness: Harness) -> None:
    """In more than one list of ids, where the database is asked by lists."""
    waiting = [harness.submit() for _ in range(3)]
    finished = harness.place(JobStatus.FINISHED).job_id
    failed = harness.place(JobStatus.ERROR).job_id
    final = harness.store.queries.final
    assert final(waiting) == {}
    assert final([*waiting, finished, failed]) == {
        finished: FinalJob(JobStatus.FINISHED, None),
        failed: FinalJob(JobStatus.ERROR, None),
    }
    missing = range(10**9, 10**9 + 1200)
    found = final([*waiting, *missing, finished])
    assert found == {**dict.fromkeys(missing), finished: FinalJob(JobStatus.FINISHED, None)}


def test_outcomes_are_those_of_ended_tasks(harness: Harness) -> None:
    running, failed = harness.place(JobStatus.RUNNING).job_id, harness.place(JobStatus.ERROR)
    job = harness.store.queries.stored_job(failed.job_id)
    assert job is not None
    assert job.error == FAILURE
    assert harness.store.queries.outcomes([running, failed.job_id]) == {failed.job_id: JobOutcome.of(job)}
