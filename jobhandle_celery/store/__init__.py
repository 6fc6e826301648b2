"""The only SQL. `Store` is the database of one namespace: a few objects, one for each kind of operation.

A guard is part of the statement that changes the row, and a method's docstring says which process may have
been there first. If no row changes, another process was: an ordinary result, not an exception. A `Transition`
is a change of status as data; an `Executor` writes it, with its event, in the way of its database.
"""

from .after_commit import Detachable, uncommitted
from .call_threads import running_loop, runs_event_loop, threads
from .control import Control
from .database import Database
from .diagnostics import Diagnostics, JobDetails, Trouble
from .engine import engine_maker
from .executors import Executor
from .fork_guard import Forkable, forks
from .insert import Inserter
from .leases import Leases
from .outbox import MAX_REPUBLISH_DEFERRALS, Outbox
from .pages import Page, Pages
from .queries import Queries
from .records import (
    ChangedJob,
    ClaimRejected,
    MessageKey,
    NewJob,
    NewJobs,
    NewMember,
    PendingMessage,
    ProcessRef,
    RejectionReason,
    Run,
    RunResult,
    RunSnapshot,
    Selection,
    SubmitResult,
    Worker,
)
from .recovery import Recovery
from .retrying import limit_retries
from .runs import Runs
from .sessions import async_session_of
from .settling import Settling
from .snapshots import JobOutcome, JobState, TreeRow
from .stats import Stats, Tally, WorkerSeen
from .sweep import Sweep
from .tree_results import NOT_KEPT, ResultNotKept, ResultsTooLarge
from .trees import Trees


class Store:
    """The operations on the jobs of one namespace."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.inserter = Inserter(database)
        self.settling = Settling(database)
        self.trees = Trees(database, self.settling)
        self.outbox = Outbox(database)
        self.runs = Runs(database)
        self.leases = Leases(database)
        self.recovery = Recovery(database)
        self.control = Control(database)
        self.sweep = Sweep(database)
        self.queries = Queries(database)
        self.pages = Pages(database)
        self.stats = Stats(database)
        self.diagnostics = Diagnostics(database)
