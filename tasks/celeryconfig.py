"""The configuration of the app, from environment variables.

``JOBHANDLE_DATABASE_URL``, ``JOBHANDLE_BROKER_URL``: the database and the broker. Default: a SQLite file and
a folder of messages, which need no server, in ``.jobhandle`` below the current directory; it is created here.
``JOBHANDLE_SCRIPTS``: the folder whose programs `tasks.run_script` may run. Default: none.
``JOBHANDLE_SHUTDOWN_TIMEOUT``: seconds for running tasks after SIGQUIT, before their jobs are given back.
"""

import os
from pathlib import Path
from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from sqlalchemy import URL

# For `filesystem://` in this process only; the reason is in its docstring.
TRANSPORT_ALIASES["filesystem"] = "tasks.filesystem_transport:Transport"

_folder = Path.cwd() / ".jobhandle"
_messages = _folder / "messages"

jobhandle_database_url: str | URL = os.environ.get("JOBHANDLE_DATABASE_URL", "")
broker_url = os.environ.get("JOBHANDLE_BROKER_URL") or "filesystem://"
broker_connection_retry_on_startup = True
scripts_folder = os.environ.get("JOBHANDLE_SCRIPTS")
worker_soft_shutdown_timeout = float(os.environ.get("JOBHANDLE_SHUTDOWN_TIMEOUT") or 0)
# A message behind a long task is left to another worker.
worker_prefetch_multiplier = 1

if not jobhandle_database_url:
    _folder.mkdir(exist_ok=True)
    # From its parts: the folder's name may contain a question mark.
    jobhandle_database_url = URL.create("sqlite", database=str(_folder / "jobs.sqlite3"))

broker_transport_options: dict[str, Any] = {}
if broker_url.startswith("filesystem:"):
    _messages.mkdir(parents=True, exist_ok=True)
    broker_transport_options = {
        # One folder, to which clients write and from which workers read.
        "data_folder_in": str(_messages),
        "data_folder_out": str(_messages),
        "control_folder": str(_folder / "control"),
        # Seconds. With kombu's default of one second, a worker would run a handful of jobs a second.
        "polling_interval": 0.05,
    }
    # The number of jobs that run between two polls.
    worker_prefetch_multiplier = 16
    # On one machine a lost worker can be detected soon. The transport loses the messages of a killed worker;
    # the sweep publishes them again after this time.
    jobhandle_lease = 6
    jobhandle_republish_after = 10
