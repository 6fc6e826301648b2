"""The store does what the model does, on each database: a search by Hypothesis.

It looks at the same examples in each run of the same tests. `JOBHANDLE_TEST_MACHINE_EXAMPLES=5000` looks at
others, and makes what it finds small, which takes minutes.
"""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test as run_machine

from jobhandle_celery.settings import Settings
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Database, engine_maker
from tests.store.cutting import Cutter
from tests.store.judging import legal
from tests.store.machine import StoreMachine

LONGER = os.environ.get("JOBHANDLE_TEST_MACHINE_EXAMPLES")
EXAMPLES = int(LONGER or "30")
PHASES = (Phase.generate, Phase.shrink) if LONGER else (Phase.generate,)
STEPS = 40


@pytest.mark.timeout(3600 if LONGER else 600)  # for a hang; a busy machine may take minutes
def test_the_store_does_what_the_model_does(common_url: str) -> None:
    door = Database(engine_maker(common_url), Settings())
    cutter = Cutter(door.engine)
    run_machine(
        lambda: StoreMachine(common_url, door, cutter),  # type: ignore[arg-type]  # any callable will do
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            phases=PHASES,
            deadline=None,
            database=None,
            derandomize=not LONGER,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    door.close()


@pytest.mark.parametrize("status", JobStatus)
def test_the_table_of_moves_leads_from_no_final_status_but_by_resubmit(status: JobStatus) -> None:
    leads_to = {after for after in JobStatus if after is not status and legal(status, after)}
    assert leads_to == ({JobStatus.RESUBMITTED} if status.final else leads_to - {JobStatus.RESUBMITTED})
