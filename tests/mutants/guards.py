"""What the author of a verb may get wrong beside the rules: guards whose absence must be noticed, too."""

from tests.mutants.mutant import Mutant

GUARDS = [
    Mutant(
        104,
        "an end whose answer was lost is asked again and refused",
        "store/runs.py",
        "        if self._already_by(connection, run, status):\n            return True\n",
        "",
        "tests/store/test_fences.py",
    ),
    Mutant(
        105,
        "whoever settles a run in its place leaves it its claim",
        "store/outcomes.py",
        'TAKEN_AWAY: dict[str, Any] = {"claim_id": None}',
        "TAKEN_AWAY: dict[str, Any] = {}",
        "tests/store/test_fences.py",
    ),
    Mutant(
        106,
        "a resubmit whose answer was lost is asked again and refused",
        "store/publish.py",
        "            if former.task_id == task_id:\n                return True\n",
        "",
        "tests/store/test_resubmit.py",
    ),
    Mutant(
        107,
        # Each alone implies the other, in every row that the verbs can make.
        "the claim looks neither at the status nor at the stamp of a cancel",
        "store/runs.py",
        '        moves("claim"),\n'
        "        MINE,\n"
        "        job.c.task_id == given(job.c.task_id),\n"
        "        job.c.task == given(job.c.task),\n"
        '        job.c.attempt == given(job.c.attempt, "former"),\n'
        "        NOT_STAMPED,\n",
        "        MINE,\n"
        "        job.c.task_id == given(job.c.task_id),\n"
        "        job.c.task == given(job.c.task),\n"
        '        job.c.attempt == given(job.c.attempt, "former"),\n',
        "tests/store/test_claim.py",
    ),
    Mutant(
        108,
        "the claim does not look at the time",
        "store/runs.py",
        "        DUE,\n        NOT_EXPIRED,\n",
        "        NOT_EXPIRED,\n",
        "tests/store/test_claim.py",
    ),
    Mutant(
        109,
        "the claim starts what has expired",
        "store/runs.py",
        "        DUE,\n        NOT_EXPIRED,\n",
        "        DUE,\n",
        "tests/store/test_claim.py",
    ),
    Mutant(
        110,
        "a claim under a lease that has ended",
        "store/runs.py",
        "        *([lease_alive(given(job.c.worker_uid), locked=True)] if leased else []),\n",
        "",
        "tests/store/test_claim.py tests/store/test_leases.py",
    ),
    Mutant(
        111,
        "a database that cannot be asked is taken for a yes",
        "worker/executor.py",
        "            unanswered = True\n",
        "            return None\n",
        "tests/worker/test_database_outages.py",
    ),
    Mutant(
        112,
        "whose job it is counts for nothing",
        "store/transitions.py",
        "        if username is not None:\n            conditions.append(job.c.username == username)\n",
        "",
        "tests/test_handle.py",
    ),
    Mutant(
        113,
        "a sweep takes rows without reserving them",
        "store/sweep.py",
        "            self.execute(connection, update(job).where(reserved).values(due_at=grace))\n",
        "",
        "tests/store/test_publishing.py tests/store/test_races.py",
    ),
    Mutant(
        114,
        "a loss is not counted",
        "store/recovery.py",
        'to=requeued() | {"lost_count": job.c.lost_count + 1},',
        "to=requeued(),",
        "tests/store/test_leases.py tests/store/test_moves.py",
    ),
    Mutant(
        115,
        "a process that is frozen in a transaction keeps its locks",
        "store/connections.py",
        "FROZEN = 5\n",
        "FROZEN = 3600\n",
        "tests/store/test_frozen.py",
    ),
    Mutant(
        116,
        "a worker that retires forgets that a row names it",
        "store/sweep.py",
        "delete(worker).where(worker.c.worker_uid == worker_uid, ~named.exists())",
        "delete(worker).where(worker.c.worker_uid == worker_uid)",
        "tests/store/test_leases.py tests/store/test_races.py",
    ),
    Mutant(
        117,
        "every worker sweeps, whoever has just been here",
        "store/sweep.py",
        '                sweep_table.c.last_pass_at <= clock(ago("pass_interval")),\n',
        "                sweep_table.c.last_pass_at.is_not(None),\n",
        "tests/store/test_leases.py",
    ),
    Mutant(
        118,
        "a message is read whatever its type",
        "worker/message_guard.py",
        "    content_type = PLAIN_CONTENT_TYPES.get(message.content_type)\n",
        "    content_type = PLAIN_CONTENT_TYPES.get(message.content_type, message.content_type)\n",
        "-m faults tests/faults/test_security_messages.py",
    ),
    Mutant(
        119,
        "a message to RabbitMQ is believed to be there without its confirmation",
        "broker/connection.py",
        ', "confirm_publish": True}',
        "}",
        "-m faults tests/faults/test_broker_rabbitmq.py",
    ),
    Mutant(
        120,
        "a cancel in back-off is a mere request",
        "store/control.py",
        "    running = job.c.status_id == at(JobStatus.RUNNING)\n",
        "    running = job.c.status_id.in_([at(JobStatus.RUNNING), at(JobStatus.REQUEUED)])\n",
        "tests/store/test_moves.py tests/store/test_acting.py",
    ),
    Mutant(
        121,
        "what ends a run otherwise than by its result is guarded by status only",
        "store/transitions.py",
        "        job.c.attempt == holder.attempt,\n"
        "        job.c.status_id == at(JobStatus.RUNNING),\n"
        "        by,\n",
        "        job.c.status_id == at(JobStatus.RUNNING),\n",
        "tests/store/test_fences.py",
    ),
    Mutant(
        122,
        "PostgreSQL's mark Queued knows no attempt",
        "store/publish.py",
        "            job.c.attempt == sent.c.attempt,\n",
        "",
        "tests/store/test_publishing.py",
    ),
    Mutant(
        123,
        "whose job it is counts for nothing to a cancel",
        "store/control.py",
        "        conditions.append(job.c.username == given(job.c.username))\n",
        "        conditions.append((job.c.username == given(job.c.username)) | (job.c.id > 0))\n",
        "-m faults tests/faults/test_security_users.py",
    ),
    Mutant(
        124,
        "a late mark Queued undoes what came after its message",
        "store/publish.py",
        "            job.c.publish_count == sent.c.publish_count - 1,\n",
        "",
        "tests/store/test_publishing.py",
    ),
    Mutant(
        125,
        "a pass of the sweep looks at all jobs that wait for their time",
        "schema.py",
        '    return "statement_timestamp()"\n',
        '    return "clock_timestamp()"\n',
        "tests/store/test_due.py",
    ),
    Mutant(
        131,
        "an outcome that the database refuses is not written plainer",
        "worker/outcomes.py",
        "                outcome = outcome.plainer(error)\n",
        "                raise\n",
        "tests/store/test_outcomes.py",
    ),
    Mutant(
        132,
        "an outcome waits for the database in the process of its body",
        "worker/execution.py",
        "                if not patient:\n                    raise\n",
        "",
        "-m faults tests/worker/test_outcome_outages.py",
    ),
    Mutant(
        133,
        "a hard time limit ends the write of an outcome",
        "worker/execution.py",
        "    if left > LONGEST_WRITE:\n",
        "    if True:\n",
        "-m faults tests/worker/test_outcome_outages.py",
    ),
    Mutant(
        134,
        "the main process does not write what a child could not",
        "worker/request.py",
        "            self._take_over(report.unwritten)\n",
        "            pass\n",
        "tests/test_reports.py",
    ),
    Mutant(
        135,
        "a body that ends by Ignore is Finished whatever state it has set",
        "worker/executor.py",
        "        execution.ignore(task, current)\n",
        "        execution.finish(task, current)\n",
        "tests/test_told_states.py",
    ),
    Mutant(
        136,
        "a job is claimed within Celery's tracer, behind its signals",
        "worker/instrumentation.py",
        "            execution = _claim(task, args, kwargs, request)\n        except Ignore as refusal:\n"
        "            return _refused(task, request, refusal)\n",
        "            execution = _claim(task, args, kwargs, request)\n        except Ignore as refusal:\n"
        "            trace.signals.task_prerun.send(sender=task, task_id=uuid, task=task)\n"
        "            return _refused(task, request, refusal)\n",
        "tests/test_tracing.py",
    ),
]
