"""``celery -A app jobs …``: the command line, a plug-in of Celery's.

`context` declares commands and gives them the app, `params` and `selection` are their options, `exit_codes`
how they end, `json_output` their JSON. A command describes its output in the blocks of `output.layout`;
`output.rich` or `output.text` shows them. Rich is optional.
"""

import click
from celery.bin.base import handle_preload_options

from .cancel import cancel
from .context import JobsGroup
from .doctor import doctor
from .exit_codes import DESCRIPTIONS
from .maintenance import prune, sweep, upgrade
from .replay import replay_events
from .show import list_jobs, show
from .stats import stats, top
from .submit import release, resubmit, submit
from .wait import wait, watch

_CODES = "\n".join(f"  {code:d}  {description}" for code, description in DESCRIPTIONS.items())


@click.group(
    "jobs",
    cls=JobsGroup,
    epilog=f"\b\nExit codes:\n{_CODES}\n\n"
    "Durations: 45s, 90m, 1h30m, 30d. Times: ISO 8601 (without a zone: this machine's), or +10m from now. "
    "Every command accepts --json and then prints JSON documents, one a line.",
)
@click.pass_context
@handle_preload_options
def jobs(ctx: click.Context) -> None:
    """Submit, watch and cancel durable jobs, and maintain their tables."""


for _command in (
    *(submit, list_jobs, show, watch, wait, cancel, resubmit, release),
    *(stats, top, doctor, replay_events),
    *(upgrade, sweep, prune),
):
    jobs.add_command(_command)
