"""The command: its arguments, its steps and its exit code."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kombu.exceptions import OperationalError

from jobhandle_celery import ConfigurationError, JobHandleError, JobStatus
from tasks.application import app, jobs

from . import manifest
from .cancelled_job import CancelledJob
from .display import open_display
from .files import STATE, Scan, printable, scan
from .plan import find_earlier_jobs, plan_jobs
from .run import UNFINISHED, Run
from .summary import print_counts, print_failures, print_manifest, print_next_steps
from .worker import IDLE_STOP_TIMEOUT, Worker, WorkerError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

POLL_INTERVAL = 0.2
"""Seconds between two polls of the jobs."""

BROKER_TIMEOUT = 5
"""Seconds for the broker to answer before the worker is started."""


@dataclass(frozen=True)
class Options:
    """The checked arguments; all paths are absolute."""

    folder: Path
    manifest: Path
    state: Path
    concurrency: int
    embedded: bool
    """True if the database is the SQLite file in `state`."""


def main(arguments: Sequence[str]) -> int:
    """Write a manifest; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # both are text files
    options = _parse(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return _run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone; without this Python reports it again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ConfigurationError as error:
        return _print_error(error, USAGE)
    except (JobHandleError, WorkerError, OSError) as error:
        return _print_error(error, FAILED)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _print_error(error: object, code: int) -> int:
    print(f"tasks: {error}", file=sys.stderr)
    return code


def _parse(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m tasks",
        description="Write a checksum manifest of a folder, and thumbnails of its images, with durable jobs: "
        "one job for each file, run by a Celery worker that this command starts. After Ctrl-C the jobs stay "
        "in the database, and the same command resumes; files that have not changed are not read again.",
        epilog="Exit codes: 0 all jobs finished, 1 a job or the run failed, 2 wrong usage, 130 interrupted. "
        f"The database, the worker's log and the thumbnails are in {STATE} in the current directory.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="symbolic links in it are not followed")
    parser.add_argument("--manifest", metavar="FILE", help="default: FOLDER/manifest-sha256.txt")
    parser.add_argument(
        "--database-url", metavar="URL", help="default: $JOBHANDLE_DATABASE_URL, else a SQLite file"
    )
    parser.add_argument(
        "--broker-url", metavar="URL", help="default: $JOBHANDLE_BROKER_URL, else a folder of messages"
    )
    parser.add_argument(
        "--concurrency", metavar="N", type=int, default=os.cpu_count() or 2, help="processes of the worker"
    )
    given = parser.parse_args(arguments)
    if not os.path.isdir(given.folder):
        problem = "not a folder" if os.path.exists(given.folder) else "no such folder"
        parser.error(f"{printable(given.folder)}: {problem}")
    folder = Path(given.folder).resolve()
    target = Path(given.manifest).absolute() if given.manifest else folder / "manifest-sha256.txt"
    # Resolved as the scan resolves the files.
    target = target.parent.resolve() / target.name
    if os.path.isdir(target) or not os.path.isdir(target.parent):
        parser.error(f"{printable(str(target))}: the manifest cannot be written there")
    if given.concurrency < 1:
        parser.error("--concurrency must be at least 1")
    # The app reads them at its first use, and the worker inherits them.
    for name, url in (
        ("JOBHANDLE_DATABASE_URL", given.database_url),
        ("JOBHANDLE_BROKER_URL", given.broker_url),
    ):
        if url:
            os.environ[name] = url
    embedded = not os.environ.get("JOBHANDLE_DATABASE_URL")
    return Options(folder, target, Path.cwd() / STATE, given.concurrency, embedded)


def _run(options: Options) -> int:
    found = scan(options.folder, exclude=options.manifest)
    if not found.files:
        for problem in found.problems:
            print(problem, file=sys.stderr)
        return _print_error(f"{printable(str(options.folder))} has no regular files: no manifest", FAILED)
    thumbnails = options.state / "thumbnails"
    thumbnails.mkdir(parents=True, exist_ok=True)
    jobs.upgrade_schema()
    plan = plan_jobs(found.files, thumbnails)
    # Before a worker starts, so that jobs which it finishes meanwhile are not submitted again.
    finished = find_earlier_jobs(jobs, plan, [JobStatus.FINISHED])
    run = Run(jobs, plan, finished, find_earlier_jobs(jobs, plan, UNFINISHED))
    folder = printable(str(options.folder))
    print(f"{len(found.files):,} files in {folder}: {run.total:,} jobs to run", flush=True)
    if not run.total:
        return _finish(run, found, None, options)
    _check_broker()
    cancelled = CancelledJob(jobs, found.files[0].path)
    print(f"cancelled job {cancelled.job_id} after its message was published: the worker must not run it")
    log = options.state / "worker.log"
    print(f"starting a Celery worker with {options.concurrency} processes; its log is {log}", flush=True)
    worker = Worker(log, options.concurrency)
    try:
        _run_jobs(run, worker)
        return _finish(run, found, cancelled, options)
    finally:
        worker.stop(IDLE_STOP_TIMEOUT if run.is_over else None)


def _run_jobs(run: Run, worker: Worker) -> None:
    try:
        worker.wait_until_ready()
        with open_display() as display:
            while not run.is_over:
                display.update(run, run.step())
                if not run.is_over:
                    worker.check()
                    time.sleep(POLL_INTERVAL)
    except KeyboardInterrupt:
        print("\nstopping after the running jobs; press Ctrl-C again to give them back now", flush=True)
        worker.stop()
        run.poll()
        print_counts(run)
        print(f"{run.left:,} jobs stay in the database; the same command resumes")
        raise


def _finish(run: Run, found: Scan, cancelled: CancelledJob | None, options: Options) -> int:
    print()
    print_counts(run)
    if cancelled is not None:
        print(f"\n{'The cancel held' if cancelled.held else 'The cancel FAILED'}: {cancelled.describe()}.")
    sys.stdout.flush()
    print_failures(run, found.problems)
    digests = run.digests()
    if digests:
        manifest.write(options.manifest, digests)
        print_manifest(options.folder, options.manifest, len(digests))
    if cancelled is not None and options.embedded:
        print_next_steps(cancelled.job_id)
    sys.stdout.flush()
    held = cancelled is None or cancelled.held
    return OK if held and not run.failed() and not found.problems else FAILED


def _check_broker() -> None:
    """Check that the broker answers: a worker would wait for it without end.

    Raises:
        ConfigurationError: the URL is invalid.
        OSError: the broker is unavailable.
    """
    try:
        connection = app.connection_for_write(connect_timeout=BROKER_TIMEOUT)
        with connection:
            connection.ensure_connection(max_retries=1, timeout=BROKER_TIMEOUT)
    except (KeyError, ValueError, ImportError) as error:
        raise ConfigurationError(f"the URL of the broker: {error}") from None
    except OperationalError as error:
        raise OSError(f"the broker at {connection.as_uri()} is unavailable: {error}") from None
