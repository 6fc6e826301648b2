"""The demo's app, with its `tasks.run_script`, at a speed for tests."""

import json
import os

from tasks.application import app

__all__ = ["app"]

app.conf.update(json.loads(os.environ["JOBHANDLE_TEST_SETTINGS"]))
