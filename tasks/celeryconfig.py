"""The configuration, from the environment; read by Celery when it is first needed.

``JOBHANDLE_DATABASE_URL`` and ``JOBHANDLE_BROKER_URL``; without them an embedded pair that needs no server:
a SQLite file and a folder of messages, under ``.jobhandle`` of the current directory, which is made here.
``JOBHANDLE_SCRIPTS`` names the folder whose programs `tasks.run_script` may run; without it there are none.
``JOBHANDLE_SHUTDOWN_TIMEOUT``: the seconds for which bodies may go on after SIGQUIT, before their jobs are
given back.
"""

import os
from pathlib import Path
from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from sqlalchemy import URL

# For URLs of that kind in this process alone; the reason is in its docstring.
TRANSPORT_ALIASES["filesystem"] = "tasks.mailbox:Transport"

_folder = Path.cwd() / ".jobhandle"
_messages = _folder / "messages"

jobhandle_database_url: str | URL = os.environ.get("JOBHANDLE_DATABASE_URL", "")
broker_url = os.environ.get("JOBHANDLE_BROKER_URL") or "filesystem://"
broker_connection_retry_on_startup = True
scripts_folder = os.environ.get("JOBHANDLE_SCRIPTS")
worker_soft_shutdown_timeout = float(os.environ.get("JOBHANDLE_SHUTDOWN_TIMEOUT") or 0)
# What waits behind a long body is another worker's to take.
worker_prefetch_multiplier = 1

if not jobhandle_database_url:
    _folder.mkdir(exist_ok=True)
    # Put together from its parts: there may be a question mark in the folder's name.
    jobhandle_database_url = URL.create("sqlite", database=str(_folder / "jobs.sqlite3"))

broker_transport_options: dict[str, Any] = {}
if broker_url.startswith("filesystem:"):
    _messages.mkdir(parents=True, exist_ok=True)
    broker_transport_options = {
        # One folder: what one side puts in, the other takes out.
        "data_folder_in": str(_messages),
        "data_folder_out": str(_messages),
        "control_folder": str(_folder / "control"),
        # Seconds between two looks. kombu's own second would let a worker run a handful of jobs a second.
        "polling_interval": 0.05,
    }
    # As many as are run between two looks.
    worker_prefetch_multiplier = 16
    # One machine: a worker that is gone is missed soon. What a killed worker had taken out of the folder is
    # forgotten by the transport, and sent again after the patience.
    jobhandle_lease = 6
    jobhandle_republish_after = 10
