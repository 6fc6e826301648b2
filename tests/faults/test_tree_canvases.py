"""Random canvases in real workers: ours give the results of a plain Celery worker with Redis results."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.result import allow_join_result
from hypothesis import HealthCheck, Phase, given, seed, settings

from jobhandle_celery import JobHandle, JobStatus, ValidationError
from jobhandle_celery.broker.plan_canvas import plan
from tests.rng import SEED, rng, scaled, stretched
from tests.trees import canvases
from tests.trees.canvases import BODIES, Description, descriptions, note
from tests.trees.evaluate import Evaluation
from tests.trees.plain_celery import hangs_in_celery, needs_celery_5_7, repeats_in_celery
from tests.worker.cluster import Cluster, NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

APP = "tests.faults.canvas_app:app"
PLAIN = "plain"


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    """A cluster with a worker of ours, and a plain one for another queue."""
    cluster = module_cluster()
    cluster.start(APP, concurrency=3, ready=False)
    cluster.start(APP, concurrency=2, ready=False, database_url=None, settings={"task_default_queue": PLAIN})
    for worker in cluster.workers:
        worker.wait_until_ready()
    return cluster


@pytest.fixture
def plain(cluster: Cluster) -> Iterator[Celery]:
    app = Celery("plain client", broker=cluster.broker_url, set_as_current=False)
    app.conf.update(cluster.settings, task_default_queue=PLAIN)
    for name, body in BODIES.items():
        app.task(name=name, shared=False)(body)
    yield app
    app.close()


def drawn(count: int) -> list[Description]:
    """Return random canvases, the same for the same seed."""
    rng()  # prints it
    found: list[Description] = []

    @seed(SEED)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    @given(descriptions())
    def collect(description: Description) -> None:
        found.append(description)

    collect()
    return found


def _map(task: Any, it: Any) -> list[Any]:
    return [note(value) for value in it]


def expected(canvas: Any) -> Any:
    planned = plan([canvas])
    return canvases.plain(Evaluation(planned, {**BODIES, "celery.map": _map}).result(planned.roots[0]))


@pytest.fixture
def client(cluster: Cluster) -> Celery:
    """Our own client's app, which has the tasks."""
    for name, body in BODIES.items():
        if name not in cluster.app.tasks:
            cluster.app.task(name=name, shared=False)(body)
    return cluster.app


def submitted(cluster: Cluster, canvas: Any) -> JobHandle | None:
    """Submit a canvas; None if it has no task."""
    handle = cluster.jobs.handle()
    try:
        handle.submit(canvas)
    except ValidationError as error:
        if "at least one task" not in str(error):
            raise
        return None
    return handle


def ignoring(value: Any, draw: Any) -> Any:
    """Return a description in which random tasks ignore their results."""
    if isinstance(value, list):
        return [ignoring(part, draw) for part in value]
    if not isinstance(value, dict):
        return value
    own = {"ignored": draw.random() < 0.5} if value.get("kind") == "task" else {}
    return {name: ignoring(part, draw) for name, part in value.items()} | own


def test_random_canvases_end_with_their_results(cluster: Cluster, client: Celery) -> None:
    """Also where tasks ignore their results: as in Celery, the next ones get them."""
    draw = rng("ignored")
    canvas_of = {
        number: canvases.signature(client, ignoring(description, draw))
        for number, description in enumerate(drawn(scaled(80)))
    }
    handles = {number: submitted(cluster, canvas) for number, canvas in canvas_of.items()}
    for number, handle in handles.items():
        if handle is None:
            continue
        details = f"canvas {number}: {canvas_of[number]}"
        assert handle.wait(stretched(120)) is JobStatus.FINISHED, details
        assert handle.result(timeout=60) == expected(canvas_of[number]), details
        for row in handle.members():
            assert row.status is JobStatus.FINISHED, f"{details}: {row}"
            assert row.attempt == (row.kind is None), f"{details}: {row}"


@needs_celery_5_7
def test_random_canvases_have_the_results_of_plain_celery(
    cluster: Cluster, client: Celery, plain: Celery
) -> None:
    compared = 0
    for description in drawn(scaled(50)):
        canvas = canvases.signature(client, description)
        handle = submitted(cluster, canvas)
        planned = None if handle is None else plan([canvas])
        if handle is None or planned is None or hangs_in_celery(planned) or repeats_in_celery(planned):
            continue
        with allow_join_result():
            result = canvases.signature(plain, description).apply_async()
            theirs = result.get(timeout=stretched(60))
        assert handle.result(timeout=stretched(60)) == theirs, description
        compared += 1
    print(compared, "canvases")
    assert compared > 5
