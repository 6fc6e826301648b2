"""The store compared with the model: any calls in any order, several jobs, two workers, time."""

import time
import uuid
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)
from sqlalchemy import update

from jobhandle_celery.errors import InvalidTransitionError
from jobhandle_celery.schema import clock, job
from jobhandle_celery.status import FINAL, SETTABLE, JobStatus
from jobhandle_celery.store import ClaimRejected, Database, PendingMessage, Run, Worker
from tests.store.assertions import agree, follows, legal, look
from tests.store.harness import FAILURE, TASK, Harness, Row, new_job
from tests.store.model import Model
from tests.store.model_job import RUNNING, ModelJob
from tests.store.model_leases import LEASE
from tests.store.scenario import DURATIONS, minutes

MAX_JOBS = 3
"""With more jobs, fewer calls would meet on one row."""
MAX_REAL_TIME = 0.0
"""Seconds that the database's clock may run ahead of the model's, far less than `assertions.CLOSE`."""


class StoreMachine(RuleBasedStateMachine):
    """Each rule makes a call on the store and on the model, and compares the answers."""

    jobs = Bundle("jobs")
    messages = Bundle("messages")
    """Published messages; the broker may deliver any of them at any time, and again."""
    unmarked = Bundle("unmarked")
    ages = st.sampled_from([0, 0, 0, 0, 1, 2])
    """Age of a run in claims of its job: mostly the last one, which may hold the row."""
    either = st.sampled_from([0, 1])
    delays = st.sampled_from([0, 3.5, 40.5])

    def __init__(self, url: str, database: Database) -> None:
        """Begin in a new namespace; the database serves all runs."""
        super().__init__()
        self.now = time.monotonic()
        self.harness = Harness(url, database, namespace=str(uuid.uuid4()), **DURATIONS)
        self.store = self.harness.store
        self.model = Model()
        self.workers = [Worker(name, str(uuid.uuid4()), 1) for name in ("w1", "w2")]
        self.won: list[Run] = []
        """Every claim that was won, superseded or not, oldest first."""
        self.seen: dict[int, Row] = {}
        for worker in self.workers:
            self.renew(worker)

    def of(self, job_id: int) -> ModelJob:
        return self.model.jobs[job_id]

    def run_of(self, job_id: int, age: int) -> Run | None:
        """Return a run of a job, claimed now if it has none; None if it cannot be claimed."""
        runs = [run for run in self.won if run.job_id == job_id]
        return runs[-1 - min(age, len(runs) - 1)] if runs else self.win(self.harness.message(job_id), 0)

    # Submit and publish.

    @precondition(lambda self: len(self.model.jobs) < MAX_JOBS)
    @rule(
        target=jobs,
        key=st.sampled_from([None, None, "k"]),
        attempts=st.sampled_from([1, 2]),
        held=st.booleans(),
        delay=delays,
        life=st.sampled_from([0, 0, 7.5]),
    )
    def submit(self, key: str | None, attempts: int, held: bool, delay: float, life: float) -> Any:
        there = self.model.holder(key)
        new = new_job(
            unique_key=key,
            max_attempts=attempts,
            held=held,
            scheduled_for=minutes(delay),
            expires=minutes(life),
        )
        [submitted] = self.store.inserter.submit([new])
        if there:
            assert not submitted.fresh
            assert (submitted.job_id, submitted.status) == (there.job_id, there.status)
            return multiple()
        assert submitted.fresh
        assert submitted.job_id > max(self.model.jobs, default=0)
        self.model.submit(submitted.job_id, new.task_id, key, attempts, held, delay, life)
        return submitted.job_id

    @rule(target=messages, job_id=jobs)
    def send(self, job_id: int) -> Any:
        sent = self.outgoing(job_id)
        self.mark(sent)
        return multiple(*sent)

    def outgoing(self, job_id: int) -> list[PendingMessage]:
        sent = self.store.outbox.reserve([job_id])
        assert bool(sent) == self.model.outgoing(self.of(job_id))
        return sent

    @rule(target=unmarked, job_id=jobs)
    def send_and_be_slow_to_mark(self, job_id: int) -> Any:
        return multiple(*self.outgoing(job_id))

    @rule(target=messages, message=consumes(unmarked))
    def mark_late(self, message: PendingMessage) -> Any:
        self.mark([message])
        return message

    def mark(self, sent: list[PendingMessage]) -> None:
        self.store.outbox.mark_queued(sent)
        for message in sent:
            self.model.mark_queued(message)

    @rule(target=unmarked)
    def sweep(self) -> Any:
        reserved = self.store.outbox.reserve_due(100)
        assert {(message.job_id, message.attempt) for message in reserved} == self.model.reserve()
        return multiple(*reserved)

    @rule(
        message=messages,
        by=either,
        verb=st.sampled_from(["defer_republish", "send_back", "mark_revoke_reported", "lose_unstarted"]),
    )
    def something_about_a_message(self, message: PendingMessage, by: int, verb: str) -> None:
        job_id, task_id = message.job_id, message.task_id
        match verb:
            case "defer_republish":
                self.store.outbox.defer_republish([message])
                self.model.defer_republish(message)
            case "send_back":
                answer = self.store.runs.send_back(job_id, task_id, message.attempt, TASK, self.workers[by])
                assert answer == self.model.send_back(message)
            case "lose_unstarted":
                lost = self.store.recovery.lose_unstarted(
                    (job_id, task_id, message.attempt), self.workers[by]
                )
                assert [job.status for job in lost] == self.model.lose_unstarted(message)
            case _:
                answer = self.store.runs.mark_revoke_reported(job_id, task_id)
                assert answer == self.model.mark_revoke_reported(self.of(job_id), task_id)

    @rule(message=messages, by=either, clear=st.booleans())
    def receive(self, message: PendingMessage, by: int, clear: bool) -> None:
        worker, worker_uid = self.workers[by], str(self.workers[by].worker_uid)
        received = [(message.job_id, message.task_id, message.attempt)]
        given_up = self.store.recovery.note_received(received, worker)
        assert [job.status for job in given_up] == self.model.note_received(message, worker_uid)
        if clear:
            self.store.recovery.clear_received(received, worker)
            self.model.clear_received(message, worker_uid)

    @rule(job_id=jobs)
    def release(self, job_id: int) -> None:
        token = str(uuid.uuid4())
        assert self.store.control.release(job_id, token, None) == self.model.release(self.of(job_id), token)

    @rule(job_id=jobs)
    def resubmit(self, job_id: int) -> None:
        task_id = str(uuid.uuid4())
        answer: bool | str
        try:
            answer = self.store.control.resubmit(job_id, task_id, None) == [job_id]
        except InvalidTransitionError:
            answer = "key"
        assert answer == self.model.resubmit(self.of(job_id), task_id)

    @rule()
    def expire(self) -> None:
        assert self.store.sweep.expire() == self.model.expire()

    @rule()
    def unreported_cancels(self) -> None:
        cancels = self.store.sweep.unreported_cancels(1_000)
        assert sorted(job.job_id for job in cancels) == self.model.unreported_cancels()

    # Workers.

    def win(self, message: PendingMessage, by: int) -> Run | None:
        run = Run(message.job_id, message.task_id, message.attempt, str(uuid.uuid4()), self.workers[by])
        answer = self.store.runs.claim(run, TASK)
        assert answer == self.model.claim(run)
        if isinstance(answer, ClaimRejected):
            return None
        self.won.append(run)
        return run

    @rule(message=messages, by=either)
    def claim(self, message: PendingMessage, by: int) -> None:
        self.win(message, by)

    @rule(job_id=jobs, by=either)
    def claim_at_once(self, job_id: int, by: int) -> None:
        """Claim with the message that fits; otherwise most claims would be rejected."""
        self.win(self.harness.message(job_id), by)

    @rule(job_id=jobs, age=ages, status=st.sampled_from(sorted(FINAL)), repeated=st.booleans())
    def end(self, job_id: int, age: int, status: JobStatus, repeated: bool) -> None:
        if run := self.run_of(job_id, age):
            for _ in range(1 + repeated):
                self.end_run(run, status)

    def end_run(self, run: Run, status: JobStatus) -> None:
        verbs = {
            JobStatus.FINISHED: lambda: self.store.runs.finish(run, "1"),
            JobStatus.ERROR: lambda: self.store.runs.fail(run, FAILURE),
            JobStatus.CANCELLED: lambda: self.store.runs.stop(run, ""),
        }
        words = "ValueError: no good" if status is JobStatus.ERROR else ""
        assert verbs[status]() == self.model.end(run, status, words)

    @rule(job_id=jobs, age=ages, delay=delays, repeated=st.booleans())
    def retry(self, job_id: int, age: int, delay: float, repeated: bool) -> None:
        if run := self.run_of(job_id, age):
            for _ in range(1 + repeated):
                self.retry_run(run, delay)

    def retry_run(self, run: Run, delay: float) -> None:
        answer = self.store.runs.retry(run, "{}", None, delay * 60 or None, "again")
        assert answer == self.model.retry(run, delay)

    @rule(job_id=jobs, delay=delays)
    def claim_and_retry_before_the_mark(self, job_id: int, delay: float) -> None:
        sent = self.outgoing(job_id)
        for message in sent:
            if run := self.win(message, 0):
                self.retry_run(run, delay)
        self.mark(sent)

    @rule(job_id=jobs, age=ages, lost=st.booleans(), last_word=st.sampled_from([None, *sorted(FINAL)]))
    def cut_off(self, job_id: int, age: int, lost: bool, last_word: JobStatus | None) -> None:
        if (run := self.run_of(job_id, age)) is None:
            return
        settle = self.store.recovery.lose if lost else self.store.recovery.give_back
        expected = self.model.lose(run, "gone") if lost else self.model.give_back(run)
        assert [job.status for job in settle(run, "gone", run.worker)] == expected
        if last_word:
            self.end_run(run, last_word)

    @rule(job_id=jobs, age=ages, verb=st.sampled_from(["leave", "claim", "ask"]))
    def leave_claim_or_ask(self, job_id: int, age: int, verb: str) -> None:
        if (run := self.run_of(job_id, age)) is None:
            return
        holds = self.of(job_id).is_held_by(run)
        match verb:
            case "leave":
                self.store.runs.note_body_exited(run)
                self.model.leave(run)
            case "claim":
                assert self.store.runs.claim(run, TASK) == self.model.claim(run)
            case _:
                stop = not holds or self.of(job_id).stamped
                assert self.store.runs.check(run) == (holds, stop)
                assert self.store.runs.note_progress(run, 1, 2) == self.model.note_progress(
                    self.of(job_id), 1, run
                )

    # Anyone.

    @rule(job_id=jobs, terminate=st.booleans())
    def cancel(self, job_id: int, terminate: bool) -> None:
        answer = self.store.control.cancel(job_id, None, terminate=terminate)
        assert answer == self.model.cancel(self.of(job_id), terminate)

    @rule(job_id=jobs, status=st.sampled_from(sorted(SETTABLE)), again=st.booleans())
    def set_status(self, job_id: int, status: JobStatus, again: bool) -> None:
        token = str(uuid.uuid4())
        answer = self.store.control.set_status(job_id, status, token, None, None)
        assert answer == self.model.set_status(self.of(job_id), status, token)
        if again:
            self.resubmit(job_id)

    # Leases and time.

    def renew(self, worker: Worker) -> None:
        assert self.store.leases.renew(worker) == self.model.renew(str(worker.worker_uid))

    @rule(by=either, verb=st.sampled_from(["renew", "retire", "reap"]))
    def something_about_a_lease(self, by: int, verb: str) -> None:
        worker_uid = str(self.workers[by].worker_uid)
        match verb:
            case "renew":
                self.renew(self.workers[by])
            case "retire":
                self.store.leases.retire(self.workers[by])
                self.model.retire(worker_uid)
            case _:
                assert set(self.harness.lapsed_workers()) == self.model.lapsed()
                lost = {job.job_id: job.status for job in self.harness.reap(worker_uid)}
                assert lost == self.model.reap(worker_uid, self.workers[by].name)

    @rule(amount=st.sampled_from([1, 2, 5, 16, 30]))
    def pass_time(self, amount: int) -> None:
        self.harness.pass_time(minutes=amount)
        self.model.now += amount
        if amount < LEASE:
            self.renew(self.workers[0])  # the second one is negligent

    # Invariants.

    @invariant()
    def the_rows_are_the_models(self) -> None:
        found = look(self.harness)
        agree(found, self.model)
        rows = {row["id"]: row for row in found.jobs.values()}
        for job_id, row in rows.items():
            follows(self.seen.get(job_id), row)
        unfinished = [row for row in rows.values() if not row["status_id"].final]
        keys = [row["unique_key"] for row in unfinished if row["unique_key"]]
        assert len(keys) == len(set(keys)), "one unfinished job per key"
        self.seen = rows
        self.take_real_time_back()

    def take_real_time_back(self) -> None:
        """Move every time on by the duration of the example; a slow machine takes half a minute."""
        passed = time.monotonic() - self.now
        if passed > MAX_REAL_TIME:
            self.harness.pass_time(seconds=-passed)
            self.now += passed
            # What became due meanwhile is due.
            late = job.c.due_at.between(clock(), clock(passed))
            with self.harness.database.transaction() as connection:
                connection.execute(
                    update(job)
                    .where(job.c.namespace == self.harness.settings.namespace, late)
                    .values(due_at=clock())
                )

    def teardown(self) -> None:
        for job_id, expected in self.model.jobs.items():
            assert all(map(legal, expected.events, expected.events[1:])), expected.events
            holding = [run for run in self.won if run.job_id == job_id and self.store.runs.check(run)[0]]
            assert len(holding) <= 1, "one live claim"
        self.nothing_is_stranded()

    def nothing_is_stranded(self) -> None:
        """Let the sweep and a worker run: every job becomes final."""
        me = Worker("the last", str(uuid.uuid4()), 1)
        for _ in range(4):
            self.harness.pass_time(hours=2)
            self.store.leases.renew(me)
            for worker_uid in self.harness.lapsed_workers():
                self.harness.reap(worker_uid)
            self.store.sweep.expire()
            for message in self.store.outbox.reserve_due(100):
                run = Run(message.job_id, message.task_id, message.attempt, str(uuid.uuid4()), me)
                if not isinstance(self.store.runs.claim(run, TASK), ClaimRejected):
                    assert self.store.runs.finish(run, "1")
        for job_id in self.model.jobs:
            row = self.harness.row(job_id)
            held = row["status_id"] is JobStatus.WAITING and row["not_before"] is None
            outsiders = row["status_id"] is RUNNING and row["worker_uid"] is None
            assert row["status_id"].final or held or outsiders, row
