"""Pairs of store calls, the scenes in which they meet, and their allowed outcomes.

The model defines the outcome of two calls: that of the order in which they came; or, if one came in the
middle of the other, that of either order.
"""

import uuid
from dataclasses import dataclass, field
from typing import Any

from jobhandle_celery.store import ClaimRejected, RejectionReason, Run
from tests.store.act import WAITS
from tests.store.assertions import look
from tests.store.harness import Harness
from tests.store.model import Model
from tests.store.model_leases import LEASE
from tests.store.operations import ACTS
from tests.store.scenario import DURATIONS, Call, World

NEVER_AT_ONCE = {("claim", "retry"), ("claim", "retry later")}
"""No run is retried before its claim was answered."""

_FIRST_OF_EACH_VERB = {act.verb: name for name, act in reversed(ACTS.items())}
ONE_OF_EACH = {*_FIRST_OF_EACH_VERB.values(), "set Error", "set Cancelled"}

REPORTED = {RejectionReason.CANCELLED, RejectionReason.EXPIRED}
Outcome = tuple[list[Any], Model]


@dataclass(frozen=True)
class Scene:
    """The steps before a pair of calls: calls, and minutes that pass."""

    steps: tuple[str | float, ...] = ()
    lapsed: bool = False
    """The worker that runs the job did not renew its lease meanwhile."""
    given: dict[str, Any] = field(default_factory=dict)
    """Fields of the submitted job."""


DAYS = 2 * 24 * 60.0
SCENES: dict[str, Scene] = {
    "Submitted": Scene((2,)),
    "Submitted just now": Scene(),
    "Waiting": Scene((40,), given={"delay": 40.5}),
    "Waiting for long": Scene(given={"delay": 40.5}),
    "Held": Scene(given={"held": True}),
    "Queued": Scene(("mark_queued", 16)),
    "Queued, reserved": Scene(("mark_queued", 16, "reserve_due")),
    "Queued, expired": Scene(("mark_queued", 8), given={"life": 7.5}),
    "Queued, received": Scene(("mark_queued", "note_received")),
    "Queued, two workers lost with it": Scene(
        ("mark_queued", "lose_unstarted", "lose_unstarted", "note_received")
    ),
    "Running": Scene(("claim",)),
    "Running, asked to stop": Scene(("claim", "cancel")),
    "Running, with another attempt": Scene(("claim",), given={"attempts": 2}),
    "Running, its lease has ended": Scene(("claim", LEASE + 0.5), lapsed=True),
    "Running, taken by an outsider": Scene(("set Running",)),
    "Requeued": Scene(("claim", "retry", 2)),
    "Requeued for later": Scene(("claim", "retry later")),
    "Resubmitted": Scene(("claim", "finish", "resubmit", 2)),
    "Finished long ago": Scene(("claim", "finish", DAYS)),
    "Error": Scene(("claim", "fail")),
    "Error by hand, its body alive": Scene(("claim", "set Error")),
    "Cancelled": Scene(("mark_queued", "cancel")),
    "Cancelled, its message not received": Scene(("mark_queued", "cancel", 16)),
}


def staged(harness: Harness, scene: Scene) -> World:
    """Set a scene in its own namespace; store and model must agree at each step."""
    own = Harness(harness.url, harness.database, namespace=str(uuid.uuid4()), **DURATIONS)
    world = World(own, scene.given)
    for step in scene.steps:
        if isinstance(step, str):
            world.play(ACTS[step])
        else:
            world.pass_time(step, renewing=not scene.lapsed)
    world.steady_sweeps()
    world.save()
    return world


class Worlds:
    """The scenes on one database, each set once."""

    def __init__(self, url: str) -> None:
        self.harness = Harness(url)
        self._set: dict[str, World] = {}

    def __getitem__(self, scene: str) -> World:
        if scene not in self._set:
            self._set[scene] = staged(self.harness, SCENES[scene])
        return self._set[scene]


# Which pairs meet where.


def summary(answers: list[Any], model: Model) -> str:
    """Return an outcome without ids, which differ in each scene."""
    parts = [
        "won" if isinstance(answer, Run) else len(answer) if isinstance(answer, set) else answer
        for answer in answers
    ]
    ends = [(job.status, job.worker_uid is None, job.claim is None) for job in model.jobs.values()]
    return repr((parts, ends, len(model.leases)))


@dataclass(frozen=True)
class Encounter:
    """A call that changes rows, before another or in the middle of it."""

    first: str
    scene: str
    order_matters: bool


_changing: dict[str, list[str]] = {}
_encounters: dict[str, list[Encounter]] = {}


def changing(worlds: Worlds, scene: str) -> list[str]:
    """Return the calls that change rows in a scene, according to the model."""
    if scene not in _changing:
        world = worlds[scene]
        _changing[scene] = [
            name for name, act in ACTS.items() if world.expected((act, "once"))[1] != world.model
        ]
    return _changing[scene]


def all_encounters(worlds: Worlds, second: str) -> list[Encounter]:
    """Return the calls that a call meets, in each scene that matters; the same on each database."""
    if second not in _encounters:
        _encounters[second] = _met_by(worlds, second)
    return _encounters[second]


def _met_by(worlds: Worlds, second: str) -> list[Encounter]:
    found: dict[tuple[str, str], Encounter] = {}
    for scene in SCENES:
        world = worlds[scene]
        for first in changing(worlds, scene):
            acts = ((ACTS[first], "first"), (ACTS[second], "second"))
            forwards, (answers, model) = world.expected(*acts), world.expected(*acts[::-1])
            matters = forwards != (answers[::-1], model)
            kind = summary(*forwards) + summary(answers, model) if matters else ""
            found.setdefault((first, kind), Encounter(first, scene, matters))
    return list(found.values())


def some_encounters(worlds: Worlds, second: str) -> list[Encounter]:
    """Return one call of each kind whose order with this one matters, in one scene."""
    met = [
        encounter
        for encounter in all_encounters(worlds, second)
        if encounter.order_matters and encounter.first in ONE_OF_EACH
    ]
    return list({encounter.first: encounter for encounter in reversed(met)}.values())


# Outcomes.


def loosely(answer: Any) -> Any:
    """Return an answer without the reason of a rejection, except whether it is reported to Celery.

    A claim reads the reason after its guard, so a faster call may change it in between. test_claim.py has
    the reason that matters: a claim that was refused for a lease is made again.
    """
    return ("refused", answer.reason in REPORTED) if isinstance(answer, ClaimRejected) else answer


def in_either_order(world: World, first: Call, second: Call) -> list[Outcome]:
    """Return the allowed outcomes of two concurrent calls; one that skips locked rows may do nothing."""
    backwards, model = world.expected(second, first)
    allowed = [world.expected(first, second), (backwards[::-1], model)]
    if first[0].skipping is not WAITS:
        answers, model = world.expected(second)
        allowed.append(([first[0].skipping, *answers], model))
    if second[0].skipping is not WAITS:
        answers, model = world.expected(first)
        allowed.append(([*answers, second[0].skipping], model))
    if first[0].skipping is not WAITS and second[0].skipping is not WAITS:
        allowed.append(([first[0].skipping, second[0].skipping], world.model))
    return allowed


def wrong(world: World, given: list[Any], allowed: list[Outcome]) -> str:
    """Return how an outcome differs from each allowed one; empty if it is allowed."""
    found = look(world.harness)
    reasons = [f"answers {given}"]
    for answers, model in allowed:
        reason = world.disagreement(model, found) if given == answers else "other answers"
        if not reason:
            return ""
        reasons.append(f"allowed {answers}: {reason}")
    return "\n".join(reasons)
