"""Pydantic 2.14 tasks (`pydantic=True`): arguments and results of a job are those of the plain task."""

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from celery import Celery, chord
from kombu.exceptions import EncodeError
from pydantic import BaseModel, RootModel, ValidationInfo, field_validator

from jobhandle_celery import Job, Jobs, ValidationError
from tests.embedded import embedded_worker

pytestmark = pytest.mark.ecosystem


class Colour(Enum):
    RED = "red"


class Size(BaseModel):
    width: int
    height: int = 10


class Checked(Size):
    @field_validator("width")
    @classmethod
    def at_most(cls, width: int, info: ValidationInfo) -> int:
        if info.context is not None and width > info.context["most"]:
            raise ValueError("too wide")
        return width


class Order(BaseModel):
    number: uuid.UUID
    price: Decimal
    when: datetime
    day: date | None = None
    colour: Colour = Colour.RED
    sizes: list[Size] = []


class Names(RootModel[list[str]]):
    pass


ORDER = Order(
    number=uuid.UUID(int=5),
    price=Decimal("1.50"),
    when=datetime(2026, 5, 4, 3, 2, tzinfo=UTC),
    sizes=[Size(width=3)],
)


def area(size: Size, factor: int = 1) -> int:
    return size.width * size.height * factor


def kinds(order: Order) -> list[str]:
    values = order.number, order.price, order.when, order.day, order.colour, order.sizes[0]
    return [type(value).__name__ for value in values]


def raised(order: Order, by: Decimal) -> Order:
    return order.model_copy(update={"price": order.price + Decimal(by)})


def optional(size: Size | None = None) -> Size | None:
    return size


def names(given: Names) -> Names:
    return Names([name.upper() for name in given.root])


def untyped(size: Any) -> Any:
    return [type(size).__name__, Size(width=size["width"]).model_dump()]


def bound(self: Any, size: Size) -> list[Any]:
    return [self.name.partition(".")[2], size.width]


def retried(self: Any, size: Size) -> list[Any]:
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return [self.request.retries, size.width]


def in_context(size: Checked) -> int:
    return size.width


def many(*sizes: Size, **named: Size) -> list[str]:
    return [type(size).__name__ for size in (*sizes, *named.values())]


def total(areas: list[int], size: Size) -> list[int]:
    return [sum(areas), size.width]


WITHOUT_NONE = {"pydantic_dump_kwargs": {"exclude_none": True}}
TASKS: dict[Callable[..., Any], dict[str, Any]] = {
    **{body: {} for body in (area, kinds, optional, names, untyped, many, total)},
    raised: WITHOUT_NONE,
    bound: {"bind": True},
    retried: {"bind": True},
    in_context: {"pydantic_context": {"most": 5}},
}
CALLS: dict[str, tuple[Callable[..., Any], list[Any], dict[str, Any]]] = {
    "a model": (area, [Size(width=3)], {}),
    "a model by keyword": (area, [], {"size": Size(width=3), "factor": 2}),
    "its dict": (area, [{"width": 3}], {}),
    "a dict of text": (area, [{"width": "3"}], {}),
    "a wrong dict": (area, [{"width": "wide"}], {}),
    "no model": (area, [5], {}),
    "many types": (kinds, [ORDER], {}),
    "many types as json": (kinds, [ORDER.model_dump(mode="json")], {}),
    "many types as python": (kinds, [ORDER.model_dump(exclude={"colour"})], {}),
    "a returned model": (raised, [ORDER, Decimal("0.5")], {}),
    "an optional model": (optional, [Size(width=3)], {}),
    "none": (optional, [None], {}),
    "a root model": (names, [Names(["ann", "bob"])], {}),
    "its list": (names, [["ann", "bob"]], {}),
    "a dict for an unannotated argument": (untyped, [{"width": 3}], {}),
    "a bound task": (bound, [Size(width=3)], {}),
    "a task that retries": (retried, [Size(width=3)], {}),
    "a validator with a context": (in_context, [Checked(width=3)], {}),
    "a value that its context refuses": (in_context, [{"width": 6}], {}),
    "dicts for all of *args and **kwargs": (many, [{"width": 3}], {"small": {"width": 1}}),
}


@pytest.fixture(scope="module")
def app(redis_database_url: str, sqlite_databases: Any) -> Iterator[Any]:
    """An app with each task, plain and durable, and a worker in this process."""
    app: Any = Celery("shop", broker=redis_database_url, backend="cache+memory://", set_as_current=False)
    database_url = sqlite_databases.create()
    with Jobs(app, database_url):
        for body, options in TASKS.items():
            for durable in (True, False):
                name = f"{'durable' if durable else 'plain'}.{body.__name__}"
                app.task(name=name, durable=durable, pydantic=True, shared=False, **options)(body)
        with embedded_worker(app):
            yield app
    sqlite_databases.drop(database_url)


def outcome(get: Callable[[], Any]) -> Any:
    """Return a result, or that the arguments did not fit: Celery keeps no more of pydantic's error."""
    try:
        return get()
    except Exception as error:
        if "ValidationError" not in str(error):
            raise
        return "the arguments do not fit"


@pytest.mark.parametrize("call", CALLS)
def test_job_has_the_arguments_and_the_result_of_the_plain_task(app: Any, call: str) -> None:
    body, args, kwargs = CALLS[call]
    plain, durable = (app.tasks[f"{kind}.{body.__name__}"] for kind in ("plain", "durable"))
    handles = [app.jobs.handle(), app.jobs.handle()]
    results = [plain.apply_async(args, kwargs), durable.apply_async(args, kwargs)]
    handles[0].submit(plain.s(*args, **kwargs))
    handles[1].submit(Job(task=plain.name, args=args, kwargs=kwargs))
    expected, *outcomes = [outcome(result.get) for result in results] + [
        outcome(handle.result) for handle in handles
    ]
    assert outcomes == [expected] * 3


def test_results_go_before_the_model_of_a_signature_in_a_canvas(app: Any) -> None:
    """Celery cannot encode a model in the rest of a canvas that its message carries."""
    area, total = app.tasks["durable.area"], app.tasks["durable.total"]
    canvas: Any = chord([area.s(Size(width=1)), area.s(Size(width=2))], total.s(Size(width=5)))
    assert canvas.delay().get(timeout=60) == [30, 5]


def test_model_that_is_not_rebuilt_from_its_dump_is_refused(app: Any) -> None:
    """As by Celery, which has no JSON for it."""

    class Wide(Size):
        pass

    plain, durable = app.tasks["plain.area"], app.tasks["durable.area"]
    with pytest.raises(EncodeError):
        plain.delay(Wide(width=1))
    with pytest.raises(ValidationError, match="args"):
        durable.delay(Wide(width=1))
