"""Looser readings of the rules, each with what it leads to, and, from 101 on, three of Celery's ways."""

from tests.mutants.mutant import Mutant

RULES = [
    Mutant(
        1,
        "the mark Queued is guarded by status only",
        "store/submitting.py",
        'moves("publish"), ~HELD, for_these(group)',
        'moves("publish"), ~HELD, job.c.id.in_([one.job_id for one in group])',
        "tests/store/test_publishing.py",
    ),
    Mutant(
        2,
        "one time column for 'not early' and for the sweep",
        "store/moves.py",
        "DUE = or_(job.c.not_before.is_(None), job.c.not_before <= clock())",
        "DUE = or_(job.c.due_at.is_(None), job.c.due_at <= clock())",
        "tests/store/test_claim.py",
    ),
    Mutant(
        3,
        "a Waiting job that is due cannot be claimed",
        "status.py",
        '_move("claim", STARTABLE,',
        '_move("claim", STARTABLE - _WAITING,',
        "tests/store/test_claim.py",
    ),
    Mutant(
        4,
        "the broker's count alone decides whether a message was lost",
        "store/sweeping.py",
        "DAMPED_AT_MOST = 3",
        "DAMPED_AT_MOST = 10**9",
        "tests/test_sweep.py",
    ),
    Mutant(
        5,
        "a job whose stop was requested and whose worker is lost becomes Requeued",
        "store/losing.py",
        "                NOT_STAMPED,\n                attempts_left,",
        "                attempts_left,",
        "tests/store/test_leases.py",
    ),
    Mutant(
        6,
        "retry() writes Requeued while the body is still inside",
        "seal.py",
        "        self.execution.retry = self\n",
        "        from . import execution\n\n"
        "        execution.retry(self.type, self.execution, self, 'retry')\n",
        "tests/worker/test_retries.py",
    ),
    Mutant(
        7,
        "an outsider sets Error on a running job and resubmits it",
        "store/submitting.py",
        "            job.c.boot_id.is_(None) | ~lease_alive(job.c.boot_id),\n",
        "",
        "tests/store/test_resubmit.py",
    ),
    Mutant(
        8,
        "resubmit resets attempt",
        "store/submitting.py",
        '    "losses": 0,',
        '    "losses": 0, "attempt": 0,',
        "tests/store/test_resubmit.py",
    ),
    Mutant(
        9,
        "resubmit leaves the cancel stamp",
        "store/submitting.py",
        '            "cancel_requested",\n',
        "",
        "tests/store/test_resubmit.py",
    ),
    Mutant(
        10,
        "the claim refuses an expired job, and nobody writes it",
        "store/running.py",
        '                moves("expire"),\n',
        "                literal(False),\n",
        "tests/store/test_claim.py",
    ),
    Mutant(
        11,
        "the reap does not look at the lease again",
        "store/sweeping.py",
        ".where(worker.c.boot_id == boot_id, worker.c.lease_until <= clock(), self._unbroken())",
        ".where(worker.c.boot_id == boot_id, self._unbroken())",
        "tests/store/test_leases.py",
    ),
    Mutant(
        12,
        "leases are believed at once after an outage",
        "store/sweeping.py",
        "                sweep_table.c.unbroken_since <= clock(-self.settings.lease),\n"
        "                sweep_table.c.last_pass_at >= clock(-self.settings.unbroken),\n",
        "",
        "tests/store/test_leases.py",
    ),
    Mutant(
        13,
        "the message carries no attempt",
        "store/running.py",
        '        job.c.attempt == given(job.c.attempt, "former"),\n',
        '        (job.c.attempt == given(job.c.attempt, "former")) | (job.c.id != 0),\n',
        "tests/store/test_claim.py",
    ),
    Mutant(
        14,
        "a revoke for a duplicate on another worker writes Cancelled",
        "store/acting.py",
        "    running = job.c.status_id == at(JobStatus.RUNNING)\n",
        "    running = job.c.id < 0\n",
        "tests/store/test_fences.py",
    ),
    Mutant(
        15,
        "an outsider's Running has a lease",
        "store/acting.py",
        "                    **LEFT,\n",
        "                    'boot_id': 'outsider', 'pid': 1,\n",
        "tests/store/test_leases.py",
    ),
    Mutant(
        16,
        "a run's writes are guarded by status only",
        "store/running.py",
        "    job.c.attempt == given(job.c.attempt),\n"
        "    job.c.status_id == at(JobStatus.RUNNING),\n"
        "    job.c.claim_id == given(job.c.claim_id),\n",
        "    (job.c.attempt == given(job.c.attempt)) | (job.c.id != 0),\n"
        "    job.c.status_id == at(JobStatus.RUNNING),\n"
        "    (job.c.claim_id == given(job.c.claim_id)) | (job.c.id != 0),\n",
        "tests/store/test_fences.py",
    ),
    Mutant(
        17,
        "one thread renews and publishes",
        "worker.py",
        "        self._lease.start()\n"
        "        self._chores = Chores(self._service, parent)\n"
        "        interval = settings.pass_interval.total_seconds()\n"
        '        self._chores_beat = _Beat("jobhandle-chores", interval, self._chores)\n',
        "        renew = self._lease.renew\n"
        "        self._lease.end = lambda _: None\n"
        "        self._chores = chores = Chores(self._service, parent)\n"
        "        interval = settings.pass_interval.total_seconds()\n"
        '        self._chores_beat = _Beat("jobhandle-chores", interval, lambda: (renew(), chores()))\n',
        "tests/worker/test_leases.py",
    ),
    Mutant(
        18,
        "a sweep marks Queued, and nothing looks again",
        "store/submitting.py",
        '{**_QUEUED, "publishes": publishes, "due_at": due}',
        '{**_QUEUED, "publishes": publishes, "due_at": None}',
        "tests/store/test_publishing.py",
    ),
    Mutant(
        19,
        "a claim whose answer was cut off is asked again and refused",
        "store/running.py",
        "        if row.claim_id == run.claim_id and row.status_id is JobStatus.RUNNING:\n"
        "            return run\n",
        "",
        "tests/store/test_claim.py",
    ),
    Mutant(
        20,
        "a body's handle calls cancel, set_status, resubmit without its run's fence",
        "store/moves.py",
        "    if run is not None and (row.task_id, row.attempt, row.claim_id) != (\n",
        "    if run is None and (row.task_id, row.attempt, row.claim_id) != (\n",
        "tests/test_handle_fences.py",
    ),
    Mutant(
        21,
        "a pass waits for a row that a caller's open transaction has locked",
        "store/once.py",
        "        self._skip_locked = skip_locked\n",
        "        self._skip_locked = False\n",
        "tests/store/test_locked_rows.py",
    ),
    Mutant(
        22,
        "a renewal waits for an answer without a deadline",
        "lease.py",
        "            renewal.join(self._deadline)\n",
        "            renewal.join()\n",
        "tests/test_lease.py",
    ),
    Mutant(
        23,
        "a fork waits under a lock that the lease's thread needs",
        "store/door.py",
        "        if not self._apart:\n            return gate.inside()\n",
        "        if self.engine is not None:\n            return gate.inside()\n",
        "tests/test_lease.py",
    ),
    Mutant(
        26,
        "a republished message is built from the row without what was added at submit",
        "messages.py",
        '**routing.get("headers", {}), **(options',
        "**(options",
        "tests/publish/test_handlers.py",
    ),
    Mutant(
        101,
        "a veto that Celery swallows: the refused body runs",
        "task.py",
        "        _refuse(task, run, refused)\n",
        "        pass\n",
        "tests/worker/test_definitions.py",
    ),
    Mutant(
        102,
        "a task class with its own before_start, and no super()",
        "seal.py",
        "metaclass(plain.__name__, (JobTask, plain), own)",
        "metaclass(plain.__name__, (plain, JobTask), own)",
        "tests/worker/test_definitions.py",
    ),
    Mutant(
        103,
        "bookkeeping of a revoked task for a mere duplicate",
        "task.py",
        "    if reason in _REVOKED and _may_tell(task, run):\n",
        "    if True:\n",
        "tests/worker/test_refusals.py tests/worker/test_definitions.py",
    ),
]
