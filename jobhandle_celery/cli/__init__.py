"""``celery -A app jobs …``: the command line of jobs, a plug-in of Celery's. May import service and below.

`desk` is what a command has at hand and how one is declared, `exits` how one ends, `kinds` what may be typed,
`shapes` the JSON that is printed; a command makes `blocks` of what it has asked, and `output` shows them, by
`plain` or `fancy`. Nothing but `fancy` needs Rich, and nothing here knows SQL.
"""

import click
from celery.bin.base import handle_preload_options

from .cancel import cancel
from .context import JobsGroup
from .counts import stats, top
from .doctor import doctor
from .exit_codes import MEANINGS
from .maintenance import prune, sweep, upgrade
from .replay import replay_events
from .show import list_jobs, show
from .submit import release, resubmit, submit
from .wait import wait, watch

_CODES = "\n".join(f"  {code:d}  {meaning}" for code, meaning in MEANINGS.items())


@click.group(
    "jobs",
    cls=JobsGroup,
    epilog=f"\b\nExit codes:\n{_CODES}\n\n"
    "Durations are 45s, 90m, 1h30m, 30d; times ISO 8601 (without a zone: this machine's) or +10m. "
    "--json prints JSON documents, one a line; their fields stand in jobhandle_celery.cli.json_output.",
)
@click.pass_context
@handle_preload_options
def jobs(ctx: click.Context) -> None:
    """Durable jobs: submit, watch and cancel them, and look after those that run."""


for _command in (
    *(submit, list_jobs, show, watch, wait, cancel, resubmit, release),
    *(stats, top, doctor, replay_events),
    *(upgrade, sweep, prune),
):
    jobs.add_command(_command)
