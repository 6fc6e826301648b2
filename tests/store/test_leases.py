"""Workers and their leases: which are lost, and when leases are trusted."""

import uuid
from datetime import timedelta
from typing import Any

import pytest

from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Worker
from tests.store.harness import LEASE, Bench

LAPSE = LEASE.total_seconds() + 1


def uid_of(me: Worker) -> str:
    return str(me.worker_uid)


def test_renewed_lease_lasts_and_an_unrenewed_one_lapses(bench: Bench) -> None:
    me = bench.worker()
    bench.pass_time(seconds=LAPSE - 5)
    assert bench.store.leases.renew(me)
    bench.pass_time(seconds=LAPSE - 5)
    assert bench.lapsed_workers() == []
    bench.pass_time(seconds=10)
    assert bench.lapsed_workers() == [me.worker_uid]


def test_lost_workers_jobs_are_settled_one_by_one(bench: Bench) -> None:
    """Mutant 5: a lost job with a stop request is Cancelled, not requeued."""
    me = bench.worker("w1")
    error, again, stopped = (bench.run(bench.submit(max_attempts=n), me).job_id for n in (1, 2, 2))
    bench.store.control.cancel(stopped, None, terminate=False)
    done = bench.run(bench.submit(), me)
    bench.store.runs.finish(done, "1")
    bench.pass_time(seconds=LAPSE)

    settled = {lost.job_id: lost.status for lost in bench.reap(uid_of(me))}

    assert settled == {
        error: JobStatus.ERROR,
        again: JobStatus.REQUEUED,
        stopped: JobStatus.CANCELLED,
    }
    assert {job_id: bench.status(job_id) for job_id in settled} == settled
    assert bench.status(done.job_id) is JobStatus.FINISHED
    assert bench.lapsed_workers() == []
    job = bench.store.queries.job(error)
    assert job is not None
    assert job.error is not None
    assert (job.error.kind, job.error.type) == ("system", "WorkerLostError")
    assert "w1" in job.message


def test_stopped_job_whose_worker_was_lost_stays_cancelled(bench: Bench) -> None:
    """Mutant 5: requeued, it would be published and rejected for ever."""
    run = bench.run(bench.submit(max_attempts=5))
    bench.store.control.cancel(run.job_id, None, terminate=False)
    bench.pass_time(seconds=LAPSE)
    bench.reap(uid_of(run.worker))
    bench.pass_time(hours=1)
    assert bench.store.outbox.reserve_due(10) == []
    assert bench.row(run.job_id)["finished"] is not None


def test_lost_job_that_has_attempts_left_is_due_at_once(bench: Bench) -> None:
    run = bench.run(bench.submit(max_attempts=2))
    bench.pass_time(seconds=LAPSE)
    bench.reap(uid_of(run.worker))
    assert [message.attempt for message in bench.store.outbox.reserve_due(10)] == [2]


def test_worker_that_renewed_after_it_was_listed_loses_nothing(bench: Bench, other: Bench) -> None:
    """Mutant 11 (the reap does not check the lease again): a healthy worker loses its job."""
    run = bench.run(bench.submit())
    bench.pass_time(seconds=LAPSE)
    assert bench.lapsed_workers() == [run.worker.worker_uid]
    assert other.store.leases.renew(run.worker)
    assert bench.reap(uid_of(run.worker)) == []
    assert bench.status(run.job_id) is JobStatus.RUNNING
    assert bench.store.leases.renew(run.worker)


def test_reaped_worker_learns_of_it_and_may_go_on(bench: Bench) -> None:
    run = bench.run(bench.submit())
    bench.pass_time(seconds=LAPSE)
    bench.reap(uid_of(run.worker))
    assert not bench.store.leases.renew(run.worker)
    assert bench.store.leases.renew(run.worker)
    assert bench.run(bench.submit(), run.worker).attempt == 1


def test_outsiders_running_job_is_never_lost(bench: Bench) -> None:
    """Mutant 15 (it has a lease): it would end in Error without a body."""
    job_id = bench.submit()
    assert (
        bench.store.control.set_status(job_id, JobStatus.RUNNING, str(uuid.uuid4()), "ann", None)[0] is None
    )
    assert bench.store.control.set_status(job_id, JobStatus.RUNNING, str(uuid.uuid4()), None, None)[1]
    assert bench.pass_steadily(LEASE) is True
    bench.pass_time(days=30)
    assert bench.lapsed_workers() == []
    bench.store.sweep.expire()
    assert bench.store.outbox.reserve_due(10) == []
    row = bench.row(job_id)
    assert (row["status_id"], row["worker_uid"], row["due_at"]) == (JobStatus.RUNNING, None, None)


def test_job_taken_by_outsider_from_lost_worker_names_no_worker(bench: Bench) -> None:
    run = bench.run(bench.submit(max_attempts=2))
    bench.store.recovery.lose(run, "gone", run.worker)
    assert bench.store.control.set_status(run.job_id, JobStatus.RUNNING, str(uuid.uuid4()), None, None)[1]
    bench.pass_time(seconds=LAPSE)
    assert bench.reap(uid_of(run.worker)) == []
    assert bench.status(run.job_id) is JobStatus.RUNNING


def test_worker_retires_when_nothing_names_it_any_more(bench: Bench) -> None:
    run = bench.run(bench.submit())
    bench.store.leases.retire(run.worker)
    assert bench.store.leases.renew(run.worker), "a row named it, so its lease was kept"
    bench.store.runs.finish(run, "1")
    bench.store.leases.retire(run.worker)
    assert not bench.store.leases.renew(run.worker)


def test_main_process_sees_what_its_rows_say_it_runs(bench: Bench) -> None:
    me, stranger = bench.worker("w1", pid=7), bench.worker("w2")
    first, second = (bench.run(bench.submit(), me) for _ in range(2))
    bench.run(bench.submit(), stranger)
    bench.store.runs.finish(bench.run(bench.submit(), me), "1")
    bench.store.control.cancel(first.job_id, None, terminate=True)
    bench.store.control.cancel(second.job_id, None, terminate=False)
    standings = {run.job_id: run for run in bench.store.leases.runs(uid_of(me))}
    assert standings.keys() == {first.job_id, second.job_id}
    assert [standings[run.job_id].terminate for run in (first, second)] == [True, False]
    assert (standings[first.job_id].claim_id, standings[first.job_id].pid) == (first.claim_id, 7)


def test_returning_worker_learns_its_superseded_messages(bench: Bench) -> None:
    me = bench.worker()
    runs = [bench.run(bench.submit(max_attempts=3), me) for _ in range(5)]
    lasting, ended, lost, overtaken, again = runs
    bench.store.runs.finish(ended, "1")
    for run in (lost, overtaken, again):
        bench.store.recovery.lose(run, "gone", me)
    bench.run(overtaken.job_id, bench.worker("w2"))
    bench.store.control.cancel(again.job_id, None, terminate=False)
    assert bench.store.control.resubmit(again.job_id, str(uuid.uuid4()), None)
    unclaimed = bench.key(bench.submit(), me)
    keys = [(run.job_id, run.task_id, run.attempt) for run in (*runs, unclaimed)]
    gone = (2**60, "gone", 1)
    over = {(run.job_id, run.task_id, run.attempt) for run in (lost, overtaken, again)} | {gone}
    assert bench.store.leases.superseded([*keys, gone]) == over
    assert (lasting.job_id, lasting.task_id, lasting.attempt) not in over


# When leases are trusted.


def test_first_pass_trusts_no_lease(bench: Bench) -> None:
    assert bench.store.sweep.begin_pass() is False


def test_pass_is_skipped_within_the_interval(bench: Bench, other: Bench) -> None:
    bench.store.sweep.begin_pass()
    assert other.store.sweep.begin_pass() is None
    bench.pass_time(seconds=bench.settings.pass_interval.total_seconds() + 0.1)
    assert other.store.sweep.begin_pass() is False
    assert bench.store.sweep.begin_pass() is None


def test_leases_are_trusted_after_a_lease_of_passes(bench: Bench) -> None:
    assert bench.pass_steadily(LEASE * 0.8) is False
    assert bench.pass_steadily(LEASE * 0.4) is True


@pytest.mark.parametrize("outage", [LEASE / 5, LEASE * 3])
def test_leases_are_not_trusted_after_an_outage(bench: Bench, outage: timedelta) -> None:
    """Mutant 12 (trusted at once): every running job is declared lost."""
    assert bench.pass_steadily(LEASE * 1.2) is True
    bench.pass_time(seconds=outage.total_seconds())
    assert bench.store.sweep.begin_pass() is False
    assert bench.pass_steadily(LEASE * 0.8) is False
    assert bench.pass_steadily(LEASE * 0.4) is True


def test_leases_are_not_trusted_by_a_delayed_pass(bench: Bench) -> None:
    """Related to mutant 12: the database hangs between the beginning of a pass and its reap."""
    run = bench.run(bench.submit())
    bench.trust_leases()
    bench.pass_time(seconds=LAPSE)
    assert bench.store.leases.lapsed_workers() == []
    assert bench.store.leases.reap(uid_of(run.worker)) == []
    assert bench.status(run.job_id) is JobStatus.RUNNING
    assert bench.store.leases.renew(run.worker)


@pytest.mark.parametrize("hours", [0.5, 1, 24])
def test_passes_go_on_after_the_databases_clock_was_set_back(bench: Bench, hours: float) -> None:
    bench.store.sweep.begin_pass()
    bench.pass_time(hours=-hours)
    assert bench.store.sweep.begin_pass() is not None
    assert bench.pass_steadily(LEASE * 1.2) is True


def test_long_sweep_interval_is_not_taken_for_an_outage(common_url: str, namespace: str) -> None:
    bench = Bench(common_url, namespace=namespace, sweep_interval=timedelta(hours=1))
    assert bench.pass_steadily(LEASE * 1.2) is True
    bench.close()


@pytest.mark.parametrize("longer", ["the worker's", "the sweeper's"])
def test_lease_is_judged_by_the_longer_of_two(bench: Bench, common_url: str, longer: str) -> None:
    """After an outage a worker with a long lease has one lease to renew (fault 53)."""
    long, short = LEASE * 4, LEASE
    mine, theirs = (long, short) if longer == "the worker's" else (short, long)
    sweeper = Bench(common_url, bench.database, namespace=bench.settings.namespace, lease=theirs)
    owner = Bench(common_url, bench.database, namespace=bench.settings.namespace, lease=mine)
    run = owner.run(owner.submit())
    bench.pass_time(seconds=2 * long.total_seconds())  # an outage: no renewal, no pass
    sweeper.pass_steadily(short * 1.5)
    assert sweeper.store.leases.lapsed_workers() == []
    assert sweeper.store.leases.reap(uid_of(run.worker)) == []
    assert owner.status(run.job_id) is JobStatus.RUNNING
    sweeper.pass_steadily(long)
    assert sweeper.store.leases.lapsed_workers() == [run.worker.worker_uid]
    assert [lost.job_id for lost in sweeper.store.leases.reap(uid_of(run.worker))] == [run.job_id]


def test_prune_does_not_follow_jobs_that_end_meanwhile(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under load it returned late, or never (fault 55)."""
    first = bench.place(JobStatus.FINISHED).job_id
    bench.pass_time(seconds=1)
    batch = bench.store.sweep._prune
    later: list[int] = []

    def and_another_ends(*given: Any) -> Any:
        assert len(later) < 5, "it does not come back"
        pruned = batch(*given)
        later.append(bench.place(JobStatus.FINISHED).job_id)
        return pruned

    monkeypatch.setattr(bench.store.sweep, "_prune", and_another_ends)
    assert bench.store.sweep.prune(timedelta(0)) == 1
    assert bench.store.queries.status(first, None) is None
    assert all(bench.store.queries.status(job_id, None) is JobStatus.FINISHED for job_id in later)
