"""A worker whose main process dies of some jobs before they are claimed."""

import json
import os
import signal
from typing import Any

from celery import Celery, signals

from jobhandle_celery import Jobs
from tests.apps import append_line

app = Celery("poison", broker=os.environ["JOBHANDLE_TEST_BROKER_URL"], set_as_current=False)
app.conf.update(json.loads(os.environ["JOBHANDLE_TEST_SETTINGS"]))
Jobs(app, os.environ["JOBHANDLE_TEST_DATABASE_URL"])


@app.task(name="poison.append", shared=False)
def append(path: str, text: str) -> None:
    append_line(path, text)


@app.task(name="poison.kills_main", shared=False)
def kills_main(path: str) -> None:
    append_line(path, "begun")


@signals.task_received.connect
def on_received(request: Any = None, **_: Any) -> None:
    if request.type == "poison.kills_main":
        append_line(request.args[0], "main")
        os.kill(os.getpid(), signal.SIGKILL)
