"""One of several producers: ``python -m benchmarks.producer SECONDS FILE`` submits once FILE exists."""

import sys
import time
from pathlib import Path

from .marks import clock
from .peers.celery_app import TASK, app_from_environment


def main(seconds: float, go: Path) -> None:
    """Submit jobs one after the other for some seconds; print the jobs per second."""
    app = app_from_environment()
    task = app.tasks[TASK]
    jobs = getattr(app, "jobs", None)
    handle = jobs.handle() if jobs is not None else None

    def submit(number: int) -> None:
        if handle is None:
            task.apply_async((number,))
        else:
            handle.submit(task.s(number))

    for number in range(20):
        submit(number)
    print("ready", flush=True)
    while not go.exists():
        time.sleep(0.001)
    started, done = clock(), 0
    while clock() < started + seconds:
        submit(done)
        done += 1
    print(done / (clock() - started))


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]))
