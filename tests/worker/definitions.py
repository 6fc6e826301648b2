"""Every way to define a task in Celery; each task appends a line and sets its state.

A worker of `app` has them all, one of `house_app` those of an app with a task class of its own.
`TASKS` are the names; the two apps also hold each other's shared task.
"""

import json
import os
from collections.abc import Callable
from typing import Any

from celery import Celery, Task, shared_task
from celery.worker.request import Request

from jobhandle_celery import Jobs, current_job
from tests.apps import append_line

DATABASE = os.environ.get("JOBHANDLE_TEST_DATABASE_URL")


def new_app(name: str, **options: Any) -> Celery:
    made = Celery(
        name, broker=os.environ.get("JOBHANDLE_TEST_BROKER_URL", "memory://"), set_as_current=False, **options
    )
    made.conf.update(json.loads(os.environ.get("JOBHANDLE_TEST_SETTINGS", "{}")))
    return made


def around(plain: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(self: "Task[..., Any]", *args: Any) -> Any:
        mark(self, "annotated __call__")
        return plain(self, *args)

    return wrapped


app = new_app("definitions")
app.conf.task_annotations = {
    "definitions.annotated": {
        "before_start": lambda self, *_: mark(self, "annotated before_start"),
        "on_failure": lambda *_: None,
        "rate_limit": "1000/s",
    },
    "definitions.annotated_call": {"@__call__": around},
    "definitions.annotated_tracked": {"track_started": True},
}


def mark(task: "Task[..., Any]", what: str) -> None:
    """Record in the body's result that a hook of the task was called."""
    task.request.update(marks=[*getattr(task.request, "marks", []), what])


def body(task: "Task[..., Any]", path: str, text: str) -> dict[str, Any]:
    append_line(path, text)
    state = task.backend.get_task_meta(str(task.request.id))["status"]
    job = current_job()
    return {
        "text": text,
        "state": state,
        "marks": getattr(task.request, "marks", []),
        "job": None if job is None else job.job_id,
    }


def run(self: "Task[..., Any]", path: str, text: str) -> Any:
    """Every task's function, unless its class has the body."""
    return body(self, path, text)


def define(name: str, **options: Any) -> None:
    decorate: Any = app.task
    decorate(name=f"definitions.{name}", bind=True, **options)(run)


# Before there are jobs.


class Registered(Task):  # type: ignore[type-arg]  # not generic at run time
    name = "definitions.registered"

    def run(self, path: str, text: str) -> Any:
        return body(self, path, text)


class RegisteredWithInit(Task):  # type: ignore[type-arg]  # not generic at run time
    name = "definitions.registered_with_init"
    abstract = False

    def __init__(self) -> None:
        self.mark = "from init"

    def run(self, path: str, text: str) -> Any:
        mark(self, self.mark)
        return body(self, path, text)


class RegisteredAutoretry(Registered):
    name = "definitions.registered_autoretry"
    autoretry_for = (Exception,)


define("lazy")
define("eagerly_made", lazy=False)
app.register_task(Registered())
app.register_task(RegisteredWithInit)  # a class does as well
app.register_task(RegisteredAutoretry())


jobs = Jobs(app, DATABASE) if DATABASE else None


# After there are jobs.


class AbstractBase(Task):  # type: ignore[type-arg]  # not generic at run time
    abstract = True
    track_started = True

    def before_start(self, *_: Any) -> None:
        mark(self, "own before_start")  # without super()


class InBetween(AbstractBase):
    abstract = True


class CallsRun(Task):  # type: ignore[type-arg]  # not generic at run time
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mark(self, "own __call__")
        return self.run(*args, **kwargs)


class CallsSuper(Task):  # type: ignore[type-arg]  # not generic at run time
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


class NeverCallsRun(Task):  # type: ignore[type-arg]  # not generic at run time
    def __call__(self, path: str, text: str) -> Any:
        return body(self, path, text)


class Tracked(Registered):
    name = "definitions.registered_tracked"
    track_started = True


class MarkedRequest(Request):
    def on_accepted(self, *args: Any, **kwargs: Any) -> Any:
        append_line(self.args[0], "own request")
        return super().on_accepted(*args, **kwargs)


class OwnRequest(Task):  # type: ignore[type-arg]  # not generic at run time
    Request = MarkedRequest  # type: ignore[assignment]  # a class does as well


class OwnRequestByName(Task):  # type: ignore[type-arg]  # not generic at run time
    Request = "tests.worker.definitions:MarkedRequest"


for _name in ("lazy_after", "annotated", "annotated_call", "annotated_tracked"):
    define(_name)
define("own_base", base=AbstractBase)
define("abstract_base", base=InBetween)
define("before_start_option", before_start=lambda self, *_: mark(self, "before_start option"))
define("call_runs", base=CallsRun)
define("call_supers", base=CallsSuper)
define("autoretry", autoretry_for=(BaseException,))
define("tracked", track_started=True)
define("untyped", typing=False)
define("late", acks_late=True, reject_on_worker_lost=True)
define("shadowed", shadow_name=lambda *_: "shadow.of.a.task")
define("own_request", base=OwnRequest)
define("own_request_by_name", base=OwnRequestByName)
app.register_task(Tracked())
share: Any = shared_task
share(name="definitions.shared", bind=True)(run)
share(name="definitions.shared_eagerly_made", lazy=False, bind=True)(run)


@app.task(name="definitions.call_instead_of_run", base=NeverCallsRun)
def call_instead_of_run(path: str, text: str) -> Any:
    raise AssertionError("its class does the work")


try:
    import pydantic  # type: ignore[import-not-found,unused-ignore]
except ImportError:  # an extra of Celery's
    PYDANTIC = False
else:
    PYDANTIC = True

    class Text(pydantic.RootModel[str]):  # type: ignore[misc,unused-ignore]
        pass

    @app.task(name="definitions.pydantic", bind=True, pydantic=True)
    def with_pydantic(self: "Task[..., Any]", path: str, text: Text) -> Any:
        return body(self, path, text.root)


app.finalize()


# After everything.


class RegisteredAfterFinalize(Registered):
    name = "definitions.registered_after_finalize"


define("after_finalize")
share(name="definitions.shared_after_finalize", bind=True)(run)
app.register_task(RegisteredAfterFinalize())


@app.task(name="worker.add", shared=False)
def add(x: int, y: int) -> int:
    return x + y


TASKS = sorted(name for name in app.tasks if name.startswith("definitions."))


# An app whose every task is of a class of its own.


class HouseTask(Task):  # type: ignore[type-arg]  # not generic at run time
    track_started = True

    def before_start(self, *_: Any) -> None:
        mark(self, "the house's before_start")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mark(self, "the house's __call__")
        return self.run(*args, **kwargs)


house_app = new_app("house", task_cls=HouseTask)
house_app.conf.task_default_queue = "house"


house_app.task(name="house.before_jobs", bind=True)(run)
assert issubclass(house_app.Task, HouseTask)  # touched by many projects before their tasks are defined
if DATABASE:
    Jobs(house_app, DATABASE)
house_app.task(name="house.after_jobs", bind=True)(run)
house_app.task(name="worker.add", shared=False)(add.run)
