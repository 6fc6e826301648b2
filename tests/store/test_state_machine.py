"""The store agrees with the model on each database: a search by Hypothesis.

The default run has fixed examples. `JOBHANDLE_TEST_MACHINE_EXAMPLES=5000` draws others and shrinks
failures, which takes minutes.
"""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test as run_machine

from jobhandle_celery.settings import Settings
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Database, engine_maker
from tests.databases import DATABASES, MARIADB_WITH_FAULTS
from tests.store.assertions import legal
from tests.store.crash_machine import CrashMachine
from tests.store.cutting import Cutter

LONGER = os.environ.get("JOBHANDLE_TEST_MACHINE_EXAMPLES")
EXAMPLES = {name: int(LONGER or "10") for name in DATABASES} | {"sqlite": int(LONGER or "20")}
"""Fewer on the servers, which take several times as long for an example."""
PHASES = (Phase.generate, Phase.shrink) if LONGER else (Phase.generate,)
STEPS = 40


@pytest.mark.faults
@pytest.mark.timeout(3600 if LONGER else 600)  # for a hang; a busy machine may take minutes
@pytest.mark.parametrize("common_url", MARIADB_WITH_FAULTS, indirect=True)
def test_store_does_what_the_model_does(request: pytest.FixtureRequest, common_url: str) -> None:
    name = request.node.callspec.params["common_url"]
    database = Database(engine_maker(common_url), Settings())
    cutter = Cutter(database.engine)
    run_machine(
        lambda: CrashMachine(common_url, database, cutter),  # type: ignore[arg-type]  # any callable will do
        settings=settings(
            max_examples=EXAMPLES[name],
            stateful_step_count=STEPS,
            phases=PHASES,
            deadline=None,
            database=None,
            derandomize=not LONGER,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    database.close()


@pytest.mark.parametrize("status", JobStatus)
def test_only_resubmit_leaves_a_final_status(status: JobStatus) -> None:
    leads_to = {after for after in JobStatus if after is not status and legal(status, after)}
    assert leads_to == ({JobStatus.RESUBMITTED} if status.final else leads_to - {JobStatus.RESUBMITTED})
