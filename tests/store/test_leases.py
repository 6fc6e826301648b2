"""Workers and their leases: which are lost, and when leases are trusted."""

import uuid
from datetime import timedelta
from typing import Any

import pytest

from jobhandle_celery.status import JobStatus
from tests.store.harness import LAPSE, LEASE, Harness, uid_of


def test_renewed_lease_lasts_and_an_unrenewed_one_lapses(harness: Harness) -> None:
    me = harness.worker()
    harness.pass_time(seconds=LAPSE - 5)
    assert harness.store.leases.renew(me)
    harness.pass_time(seconds=LAPSE - 5)
    assert harness.lapsed_workers() == []
    harness.pass_time(seconds=10)
    assert harness.lapsed_workers() == [me.worker_uid]


def test_lost_workers_jobs_are_settled_one_by_one(harness: Harness) -> None:
    """Mutant 5: a lost job with a stop request is Cancelled, not requeued."""
    me = harness.worker("w1")
    error, again, stopped = (harness.run(harness.submit(max_attempts=n), me).job_id for n in (1, 2, 2))
    harness.store.control.cancel(stopped, None, terminate=False)
    done = harness.run(harness.submit(), me)
    harness.store.runs.finish(done, "1")
    harness.pass_time(seconds=LAPSE)

    settled = {lost.job_id: lost.status for lost in harness.reap(uid_of(me))}

    assert settled == {
        error: JobStatus.ERROR,
        again: JobStatus.REQUEUED,
        stopped: JobStatus.CANCELLED,
    }
    assert {job_id: harness.status(job_id) for job_id in settled} == settled
    assert harness.status(done.job_id) is JobStatus.FINISHED
    assert harness.lapsed_workers() == []
    job = harness.store.queries.job(error)
    assert job is not None
    assert job.error is not None
    assert (job.error.kind, job.error.type) == ("system", "WorkerLostError")
    assert "w1" in job.message


def test_stopped_job_whose_worker_was_lost_stays_cancelled(harness: Harness) -> None:
    """Mutant 5: requeued, it would be published and rejected for ever."""
    run = harness.run(harness.submit(max_attempts=5))
    harness.store.control.cancel(run.job_id, None, terminate=False)
    harness.pass_time(seconds=LAPSE)
    harness.reap(uid_of(run.worker))
    harness.pass_time(hours=1)
    assert harness.store.outbox.reserve_due(10) == []
    assert harness.row(run.job_id)["finished"] is not None


def test_lost_job_that_has_attempts_left_is_due_at_once(harness: Harness) -> None:
    run = harness.run(harness.submit(max_attempts=2))
    harness.pass_time(seconds=LAPSE)
    harness.reap(uid_of(run.worker))
    assert [message.attempt for message in harness.store.outbox.reserve_due(10)] == [2]


def test_worker_that_renewed_after_it_was_listed_loses_nothing(harness: Harness, other: Harness) -> None:
    """Mutant 11 (the reap does not check the lease again): a healthy worker loses its job."""
    run = harness.run(harness.submit())
    harness.pass_time(seconds=LAPSE)
    assert harness.lapsed_workers() == [run.worker.worker_uid]
    assert other.store.leases.renew(run.worker)
    assert harness.reap(uid_of(run.worker)) == []
    assert harness.status(run.job_id) is JobStatus.RUNNING
    assert harness.store.leases.renew(run.worker)


def test_reaped_worker_learns_of_it_and_may_go_on(harness: Harness) -> None:
    run = harness.run(harness.submit())
    harness.pass_time(seconds=LAPSE)
    harness.reap(uid_of(run.worker))
    assert not harness.store.leases.renew(run.worker)
    assert harness.store.leases.renew(run.worker)
    assert harness.run(harness.submit(), run.worker).attempt == 1


def test_outsiders_running_job_is_never_lost(harness: Harness) -> None:
    """Mutant 15 (it has a lease): it would end in Error without a body."""
    job_id = harness.submit()
    assert (
        harness.store.control.set_status(job_id, JobStatus.RUNNING, str(uuid.uuid4()), "ann", None)[0] is None
    )
    assert harness.store.control.set_status(job_id, JobStatus.RUNNING, str(uuid.uuid4()), None, None)[1]
    assert harness.pass_steadily(LEASE) is True
    harness.pass_time(days=30)
    assert harness.lapsed_workers() == []
    harness.store.sweep.expire()
    assert harness.store.outbox.reserve_due(10) == []
    row = harness.row(job_id)
    assert (row["status_id"], row["worker_uid"], row["due_at"]) == (JobStatus.RUNNING, None, None)


def test_job_taken_by_outsider_from_lost_worker_names_no_worker(harness: Harness) -> None:
    run = harness.run(harness.submit(max_attempts=2))
    harness.store.recovery.lose(run, "gone", run.worker)
    assert harness.store.control.set_status(run.job_id, JobStatus.RUNNING, str(uuid.uuid4()), None, None)[1]
    harness.pass_time(seconds=LAPSE)
    assert harness.reap(uid_of(run.worker)) == []
    assert harness.status(run.job_id) is JobStatus.RUNNING


def test_worker_retires_when_nothing_names_it_any_more(harness: Harness) -> None:
    run = harness.run(harness.submit())
    harness.store.leases.retire(run.worker)
    assert harness.store.leases.renew(run.worker), "a row named it, so its lease was kept"
    harness.store.runs.finish(run, "1")
    harness.store.leases.retire(run.worker)
    assert not harness.store.leases.renew(run.worker)


def test_main_process_sees_what_its_rows_say_it_runs(harness: Harness) -> None:
    me, stranger = harness.worker("w1", pid=7), harness.worker("w2")
    first, second = (harness.run(harness.submit(), me) for _ in range(2))
    harness.run(harness.submit(), stranger)
    harness.store.runs.finish(harness.run(harness.submit(), me), "1")
    harness.store.control.cancel(first.job_id, None, terminate=True)
    harness.store.control.cancel(second.job_id, None, terminate=False)
    standings = {run.job_id: run for run in harness.store.leases.runs(uid_of(me))}
    assert standings.keys() == {first.job_id, second.job_id}
    assert [standings[run.job_id].terminate for run in (first, second)] == [True, False]
    assert (standings[first.job_id].claim_id, standings[first.job_id].pid) == (first.claim_id, 7)


def test_returning_worker_learns_its_superseded_messages(harness: Harness) -> None:
    me = harness.worker()
    runs = [harness.run(harness.submit(max_attempts=3), me) for _ in range(5)]
    lasting, ended, lost, overtaken, again = runs
    harness.store.runs.finish(ended, "1")
    for run in (lost, overtaken, again):
        harness.store.recovery.lose(run, "gone", me)
    harness.run(overtaken.job_id, harness.worker("w2"))
    harness.store.control.cancel(again.job_id, None, terminate=False)
    assert harness.store.control.resubmit(again.job_id, str(uuid.uuid4()), None)
    unclaimed = harness.key(harness.submit(), me)
    keys = [(run.job_id, run.task_id, run.attempt) for run in (*runs, unclaimed)]
    gone = (2**60, "gone", 1)
    over = {(run.job_id, run.task_id, run.attempt) for run in (lost, overtaken, again)} | {gone}
    assert harness.store.leases.superseded([*keys, gone]) == over
    assert (lasting.job_id, lasting.task_id, lasting.attempt) not in over


# When leases are trusted.


def test_first_pass_trusts_no_lease(harness: Harness) -> None:
    assert harness.store.sweep.begin_pass() is False


def test_pass_is_skipped_within_the_interval(harness: Harness, other: Harness) -> None:
    harness.store.sweep.begin_pass()
    assert other.store.sweep.begin_pass() is None
    harness.pass_time(seconds=harness.settings.pass_interval.total_seconds() + 0.1)
    assert other.store.sweep.begin_pass() is False
    assert harness.store.sweep.begin_pass() is None


def test_leases_are_trusted_after_a_lease_of_passes(harness: Harness) -> None:
    assert harness.pass_steadily(LEASE * 0.8) is False
    assert harness.pass_steadily(LEASE * 0.4) is True


@pytest.mark.parametrize("outage", [LEASE / 5, LEASE * 3])
def test_leases_are_not_trusted_after_an_outage(harness: Harness, outage: timedelta) -> None:
    """Mutant 12 (trusted at once): every running job is declared lost."""
    assert harness.pass_steadily(LEASE * 1.2) is True
    harness.pass_time(seconds=outage.total_seconds())
    assert harness.store.sweep.begin_pass() is False
    assert harness.pass_steadily(LEASE * 0.8) is False
    assert harness.pass_steadily(LEASE * 0.4) is True


def test_leases_are_not_trusted_by_a_delayed_pass(harness: Harness) -> None:
    """Related to mutant 12: the database hangs between the beginning of a pass and its reap."""
    run = harness.run(harness.submit())
    harness.trust_leases()
    harness.pass_time(seconds=LAPSE)
    assert harness.store.leases.lapsed_workers() == []
    assert harness.store.leases.reap(uid_of(run.worker)) == []
    assert harness.status(run.job_id) is JobStatus.RUNNING
    assert harness.store.leases.renew(run.worker)


@pytest.mark.parametrize("hours", [0.5, 1, 24])
def test_passes_go_on_after_the_databases_clock_was_set_back(harness: Harness, hours: float) -> None:
    harness.store.sweep.begin_pass()
    harness.pass_time(hours=-hours)
    assert harness.store.sweep.begin_pass() is not None
    assert harness.pass_steadily(LEASE * 1.2) is True


def test_long_sweep_interval_is_not_taken_for_an_outage(common_url: str, namespace: str) -> None:
    harness = Harness(common_url, namespace=namespace, sweep_interval=timedelta(hours=1))
    assert harness.pass_steadily(LEASE * 1.2) is True
    harness.close()


@pytest.mark.parametrize("longer", ["the worker's", "the sweeper's"])
def test_lease_is_judged_by_the_longer_of_two(harness: Harness, common_url: str, longer: str) -> None:
    """After an outage a worker with a long lease has one lease to renew (fault 53)."""
    long, short = LEASE * 4, LEASE
    mine, theirs = (long, short) if longer == "the worker's" else (short, long)
    sweeper = Harness(common_url, harness.database, namespace=harness.settings.namespace, lease=theirs)
    owner = Harness(common_url, harness.database, namespace=harness.settings.namespace, lease=mine)
    run = owner.run(owner.submit())
    harness.pass_time(seconds=2 * long.total_seconds())  # an outage: no renewal, no pass
    sweeper.pass_steadily(short * 1.5)
    assert sweeper.store.leases.lapsed_workers() == []
    assert sweeper.store.leases.reap(uid_of(run.worker)) == []
    assert owner.status(run.job_id) is JobStatus.RUNNING
    sweeper.pass_steadily(long)
    assert sweeper.store.leases.lapsed_workers() == [run.worker.worker_uid]
    assert [lost.job_id for lost in sweeper.store.leases.reap(uid_of(run.worker))] == [run.job_id]


def test_prune_does_not_follow_jobs_that_end_meanwhile(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under load it returned late, or never (fault 55)."""
    first = harness.place(JobStatus.FINISHED).job_id
    harness.pass_time(seconds=1)
    batch = harness.store.sweep._prune
    later: list[int] = []

    def and_another_ends(*given: Any) -> Any:
        assert len(later) < 5, "it does not come back"
        pruned = batch(*given)
        later.append(harness.place(JobStatus.FINISHED).job_id)
        return pruned

    monkeypatch.setattr(harness.store.sweep, "_prune", and_another_ends)
    assert harness.store.sweep.prune(timedelta(0)) == 1
    assert harness.store.queries.status(first, None) is None
    assert all(harness.store.queries.status(job_id, None) is JobStatus.FINISHED for job_id in later)
