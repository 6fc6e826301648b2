"""The check of a workload in all states after faults: in each round of a job, each body ran once.

A round goes from the submit, or a resubmit, to a final status. These faults kill no worker: a body runs again
only if it asked for a retry, or if its worker has ended by itself.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from jobhandle_celery import JobRecord, JobStatus
from jobhandle_celery.models import Event
from tests.faults.worker_faults import RESULTS, ends_of_attempts, is_given_back, is_loss
from tests.faults.workload import BodyTrace, Workload

OWN_ERRORS = {"fail": "ValueError"}
"""What bodies raise, by task."""
EXPIRED = "expired before it was started"
ALL_WAYS = {"Submitted", "Waiting", "released", "Resubmitted", EXPIRED, "Finished", "Error", "Cancelled"}
"""What `account_for_rounds` counts."""


def account_for_rounds(
    workload: Workload, rows: Mapping[int, JobRecord], errors: Mapping[str, str] = OWN_ERRORS
) -> Counter[str]:
    """Check every round; return how often rounds began, went and ended in each way.

    `errors`: by task, the exception that its body may raise.
    """
    body_traces, ways = workload.body_traces(), Counter[str]()
    ended = {f"worker {worker.nodename}" for worker in workload.cluster.workers if not worker.is_running()}
    for job_id, row in rows.items():
        events = workload.cluster.jobs.events(job_id)
        details = f"job {job_id}: {row}; {events}; its bodies: {body_traces.get(job_id)}"
        begun = {trace.attempt: trace for trace in body_traces.get(job_id, [])}
        cut_off = {event.attempt for event in events if event.message == "started" and event.actor in ended}
        for of_round in _rounds(events):
            retries = 0
            for end in ends_of_attempts(of_round):
                assert end is not None, details
                if is_loss(end) or is_given_back(end):
                    unanswered = is_given_back(end) and end.attempt not in begun
                    assert unanswered or end.attempt in cut_off, f"taken from a living worker; {details}"
                else:
                    _judge(row, end, begun.get(end.attempt), errors, details)
                    retries += end.status is JobStatus.REQUEUED
            assert retries <= (row.args[2] if row.task == "worker.again" else 0), details
            ways.update(_ways(of_round))
        if row.status is JobStatus.FINISHED:
            assert row.result == RESULTS[row.task.removeprefix("worker.")], details
        if row.status is JobStatus.CANCELLED:
            assert row.cancel_requested or events[-1].message == EXPIRED, details
    return ways


def _rounds(events: Sequence[Event]) -> Iterator[list[Event]]:
    begins = [n for n, event in enumerate(events) if n == 0 or event.status is JobStatus.RESUBMITTED]
    for begin, end in zip(begins, [*begins[1:], len(events)], strict=True):
        yield list(events[begin:end])


def _judge(
    row: JobRecord, end: Event, trace: BodyTrace | None, errors: Mapping[str, str], details: str
) -> None:
    if end.status is JobStatus.CANCELLED:
        return  # asked to stop, perhaps before its first mark
    assert trace is not None, f"{end} without a body; {details}"
    if end.status is JobStatus.ERROR:
        assert end.message.partition(":")[0] == errors.get(row.task.removeprefix("worker.")), details
    else:
        assert trace.ended, f"{end} before the body's end; {details}"


def _ways(of_round: Sequence[Event]) -> set[str]:
    last = of_round[-1]
    released = {"released"} & {event.message for event in of_round}
    return {of_round[0].status, EXPIRED if last.message == EXPIRED else last.status} | released
