"""The store compared with the model, with calls that are cut off between two statements, and repeated."""

import uuid
from copy import deepcopy
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, consumes, multiple, rule

from jobhandle_celery.store import Database, Run
from tests.store.act import Cast, key
from tests.store.assertions import agree, look
from tests.store.cutting import Cut, Cutter, Died
from tests.store.operations import ACTS
from tests.store.state_machine import StoreMachine


class CrashMachine(StoreMachine):
    """A store whose callers die in the middle of calls."""

    unanswered = Bundle("unanswered")
    """Calls whose answer was lost."""

    def __init__(self, url: str, database: Database, cutter: Cutter) -> None:
        """As `StoreMachine`; the cutter is that of the database."""
        super().__init__(url, database)
        self.cutter = cutter

    @rule(
        target=unanswered,
        job_id=StoreMachine.jobs,
        name=st.sampled_from([name for name in ACTS if name != "submit"]),
        age=StoreMachine.ages,
        by=StoreMachine.either,
        cut=st.builds(Cut, st.integers(1, 6), st.booleans(), st.booleans()),
    )
    def cut_off_in_the_middle(self, job_id: int, name: str, age: int, by: int, cut: Cut) -> Any:
        asked = (name, self.cast(job_id, age, by), str(uuid.uuid4()))
        self.sweeps_are_steady()
        before = deepcopy(self.model)
        expected = self.expect(*asked)
        try:
            with self.cutter.cutting(cut):
                answer = self.ask(*asked)
        except Died:
            try:
                agree(look(self.harness), self.model)
            except AssertionError:
                self.model = before  # the call had no effect, which the invariant checks
            return asked
        assert answer == expected or answer in ACTS[name].repeated
        return multiple()

    @rule(asked=consumes(unanswered))
    def repeat_unanswered(self, asked: tuple[str, Cast, str]) -> None:
        self.sweeps_are_steady()
        answer = self.ask(*asked)
        assert answer == self.expect(*asked)

    def ask(self, name: str, cast: Cast, token: str) -> Any:
        return ACTS[name].ask(cast, token)

    def expect(self, name: str, cast: Cast, token: str) -> Any:
        expected = ACTS[name].expected(cast, self.model, token)
        if isinstance(expected, Run) and expected not in self.won:
            self.won.append(expected)
        return expected

    def cast(self, job_id: int, age: int, by: int) -> Cast:
        """Return the cast of an act on a job, with a run that was won, if there is one."""
        sent = self.harness.message(job_id)
        other = self.workers[by]
        run = self.run_of(job_id, age) or key(sent, self.workers[1 - by])
        late = replace(sent, task_id=run.task_id, attempt=run.attempt)
        sent = self.harness.message(job_id)
        return Cast(self.store, other, late, run, sent, key(late, other), key(sent, other))

    def sweeps_are_steady(self) -> None:
        self.harness.trust_leases()
        self.model.trust_leases()
