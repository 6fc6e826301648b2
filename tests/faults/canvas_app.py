"""The app of workers that run random canvases; without a database it is plain Celery."""

from tests.trees.canvases import BODIES
from tests.worker.base_app import app

__all__ = ["app"]

for _name, _body in BODIES.items():
    app.task(name=_name, shared=False)(_body)
