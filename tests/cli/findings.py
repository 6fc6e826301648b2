"""What the checks of `jobs doctor` find."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from jobhandle_celery.cli.context import CommandContext
from jobhandle_celery.cli.doctor import CHECKS
from jobhandle_celery.cli.doctor.findings import Deployment
from jobhandle_celery.cli.output import Output
from tests.job_factory import JobFactory

NewApp = Callable[..., Any]


def findings(app: Any, name: str, **answers: Any) -> list[tuple[str, str]]:
    """Run one check; `answers` replaces what the deployment would ask its servers."""
    (check,) = [check for check in CHECKS if check.name == name]
    deployment = Deployment(CommandContext(app, Output()))
    vars(deployment).update(answers)
    with closing(deployment):
        found = check.run(deployment)
    for finding in found:
        assert finding.next_step or str(finding.level) in ("OK", "UNKNOWN")
    return [(str(finding.level), finding.message) for finding in found]


def level(app: Any, name: str, **answers: Any) -> str:
    ((level, _),) = findings(app, name, **answers)
    return level


def line(app: Any, name: str, **answers: Any) -> str:
    """Return level and message of a check's only finding."""
    ((level, message),) = findings(app, name, **answers)
    return f"{level} {message}"


def stuck_jobs(factory: JobFactory) -> Iterator[tuple[int, str]]:
    for level, message in findings(factory.app, "stuck jobs"):
        _, _, example = message.partition(". job ")
        yield int(example.split()[0]), f"{level} {message}"
