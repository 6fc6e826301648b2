"""The command: its arguments, its course, its exit status. May import everything here."""

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
from .demonstration import Demonstration
from .files import STATE, Scan, scan, shown
from .run import UNFINISHED, Run
from .screen import screen
from .summary import print_failures, print_manifest, print_table
from .wishes import known, wishes
from .worker import IDLE_STOP, Worker, WorkerError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

LOOK = 0.2
"""Seconds between two looks at the jobs."""

BROKER_TIMEOUT = 5
"""Seconds for the broker to answer, before anything is started."""


@dataclass(frozen=True)
class Options:
    """What was asked for, checked; all paths absolute."""

    folder: Path
    manifest: Path
    state: Path
    concurrency: int


def main(arguments: Sequence[str]) -> int:
    """Make a manifest; return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # both are text files
    options = _options(arguments)
    for ended_by in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ended_by, _interrupt)
    try:
        return _make_manifest(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ConfigurationError as error:
        return _complain(error, USAGE)
    except (JobHandleError, WorkerError, OSError) as error:
        return _complain(error, FAILED)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _complain(error: object, status: int) -> int:
    print(f"tasks: {error}", file=sys.stderr)
    return status


def _options(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m tasks",
        description="Make a checksum manifest of a folder of files, and thumbnails of its images, with "
        "durable jobs: each file is a job, run by a Celery worker that is started for it. Ctrl-C leaves the "
        "jobs where they are, and the same command goes on from there; files that have not changed are not "
        "read again.",
        epilog="Exit status: 0 all done, 1 a file or the run failed, 2 usage, 130 interrupted. Database, log "
        f"and thumbnails are kept in {STATE} of the current directory.",
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
        parser.error(
            f"{shown(given.folder)}: {'not a folder' if os.path.exists(given.folder) else 'no such folder'}"
        )
    folder = Path(given.folder).resolve()
    target = Path(given.manifest).absolute() if given.manifest else folder / "manifest-sha256.txt"
    # As the walk will spell it.
    target = target.parent.resolve() / target.name
    if os.path.isdir(target) or not os.path.isdir(target.parent):
        parser.error(f"{shown(str(target))}: the manifest cannot be written there")
    if given.concurrency < 1:
        parser.error("--concurrency: at least 1")
    # The app reads them when it is first used, and the worker inherits them.
    for name, url in (
        ("JOBHANDLE_DATABASE_URL", given.database_url),
        ("JOBHANDLE_BROKER_URL", given.broker_url),
    ):
        if url:
            os.environ[name] = url
    return Options(folder, target, Path.cwd() / STATE, given.concurrency)


def _make_manifest(options: Options) -> int:
    found = scan(options.folder, without=options.manifest)
    if not found.files:
        for problem in found.problems:
            print(problem, file=sys.stderr)
        return _complain(f"{shown(str(options.folder))} has no regular files; no manifest was made", FAILED)
    thumbnails = options.state / "thumbnails"
    thumbnails.mkdir(parents=True, exist_ok=True)
    jobs.upgrade_schema()
    wanted = wishes(found.files, thumbnails)
    # Before there is a worker: it would finish what an earlier run has left, and leave us to do it again.
    finished = known(jobs, wanted, [JobStatus.FINISHED])
    run = Run(jobs, wanted, finished, known(jobs, wanted, UNFINISHED))
    print(f"{len(found.files):,} files in {shown(str(options.folder))}: {run.total:,} jobs to do", flush=True)
    demonstration = _perform(run, found, options) if run.total else None
    return _conclude(run, found, demonstration, options)


def _perform(run: Run, found: Scan, options: Options) -> Demonstration:
    _check_broker()
    demonstration = Demonstration(jobs, found.files[0].path)
    log = options.state / "worker.log"
    print(f"starting a worker; its log is {log}", flush=True)
    worker = Worker(log, options.concurrency)
    try:
        worker.wait_until_ready()
        _watch(run, worker)
    except KeyboardInterrupt:
        print("\nstopping: bodies that run end first; Ctrl-C again cuts them off", flush=True)
        worker.stop()
        run.look()
        print_table(run, demonstration)
        print(f"{run.left:,} jobs are left where they are; the same command goes on from there")
        raise
    finally:
        worker.stop(IDLE_STOP if run.is_over else None)
    return demonstration


def _watch(run: Run, worker: Worker) -> None:
    with screen() as shows:
        while not run.is_over:
            shows.show(run, run.step())
            if not run.is_over:
                worker.check()
                time.sleep(LOOK)


def _conclude(run: Run, found: Scan, demonstration: Demonstration | None, options: Options) -> int:
    print_table(run, demonstration)
    if demonstration is not None:
        print(f"demonstration: {demonstration.sentence()}")
    sys.stdout.flush()
    print_failures(run, found.problems)
    digests = run.digests()
    if digests:
        manifest.write(options.manifest, digests)
        print_manifest(options.folder, options.manifest, len(digests))
    held = demonstration is None or demonstration.held
    return DONE if held and not run.failed() and not found.problems else FAILED


def _check_broker() -> None:
    """Look whether the broker is there: a worker would wait for it for ever.

    Raises:
        ConfigurationError: the URL names no broker that there could be.
        OSError: it cannot be reached.
    """
    try:
        connection = app.connection_for_write(connect_timeout=BROKER_TIMEOUT)
        with connection:
            connection.ensure_connection(max_retries=1, timeout=BROKER_TIMEOUT)
    except (KeyError, ValueError, ImportError) as error:
        raise ConfigurationError(f"the broker's URL: {error}") from None
    except OperationalError as error:
        raise OSError(f"the broker at {connection.as_uri()} was not reached: {error}") from None
