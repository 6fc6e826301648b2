"""Run a job with an installed wheel: `python tests/installed.py`, by the interpreter of an empty environment.

Not a test module: `.ci/run` and `nox -s wheel` build the wheel, install it without extras and run this. The
app uses SQLite and kombu's filesystem broker; the worker and the command line are the installed ones. Then
pytest is installed there, and runs a test with the fixtures of the wheel's plugin.
"""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent

WHEEL = """
from celery import Celery

from jobhandle_celery import Job, Jobs, current_job

app = Celery("wheel", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": "queue",
    "data_folder_out": "queue",
    "polling_interval": 0.1,
}
jobs = Jobs(app, "sqlite:///jobs.sqlite3")

other = Celery("other", broker="amqp://127.0.0.1:1//")
other.conf.jobhandle_namespace = "other"
unreachable = Jobs(other, "sqlite:///jobs.sqlite3")


@app.task
def add(a, b):
    current_job().set_message(f"{a} + {b}")
    return a + b
"""

CLIENT = """
import wheel

handle = wheel.jobs.handle(username="ann")
handle.submit(wheel.add.s(2, 3))
assert handle.result(timeout=60) == 5
assert handle.job_message() == "2 + 3"

# The error of a broker that is away is classified without Redis' client, and the row is committed.
handle = wheel.unreachable.handle()
handle.submit(wheel.add.s(2, 3))
assert handle.job_status() == "Submitted"
"""


TEST = """
import wheel


def test_sum_is_made_in_an_hour(jobs, advance):
    handle = wheel.jobs.handle(username="ann")
    handle.submit(wheel.Job(task=wheel.add.name, args=[2, 3], scheduled_for=3600))
    jobs.assert_submitted(wheel.add, args=[2, 3], username="ann")
    assert jobs.run_jobs() == []
    advance(hours=1)
    jobs.run_jobs()
    assert handle.result(timeout=0) == 5
"""


def main() -> None:
    """Run a job, check it with the command line, and run a test with the plugin.

    Raises:
        SystemExit: the checkout was imported, or an extra is installed.
        CalledProcessError: a command or the client failed.
    """
    import jobhandle_celery

    home = Path(jobhandle_celery.__file__).parent
    if home.parent == CHECKOUT:
        sys.exit(f"{home} is the checkout, not an installed wheel")
    for name in ("redis", "psycopg", "pymysql", "rich", "pytest"):
        if importlib.util.find_spec(name):
            sys.exit(f"{name} is installed: the environment does not show that it is optional")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "wheel.py").write_text(WHEEL)
        Path(folder, "queue").mkdir()
        celery = [str(Path(sys.executable).with_name("celery")), "--quiet", "-A", "wheel"]
        subprocess.run([*celery, "jobs", "upgrade"], cwd=folder, check=True)
        with subprocess.Popen(
            [*celery, "worker", "--concurrency=1", "--loglevel=WARNING"], cwd=folder
        ) as worker:
            try:
                subprocess.run([sys.executable, "-c", CLIENT], cwd=folder, timeout=120, check=True)
            finally:
                worker.terminate()
        subprocess.run([*celery, "jobs", "list"], cwd=folder, check=True)
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "pytest"], check=True)
        Path(folder, "test_wheel.py").write_text(TEST)
        Path(folder, "pytest.ini").write_text("[pytest]\njobhandle_app = wheel:app\n")
        subprocess.run([sys.executable, "-m", "pytest", "-q"], cwd=folder, check=True)
    print(
        f"jobhandle-celery {jobhandle_celery.__version__}, {home}, Python {sys.version.split()[0]}: "
        "ran a job and a test"
    )


if __name__ == "__main__":
    main()
