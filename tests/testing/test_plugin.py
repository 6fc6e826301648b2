"""The pytest plugin: how it finds an app, its settings, and what it costs those who do not use it."""

import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import pytest
from celery import Celery

from jobhandle_celery import ConfigurationError, Jobs, celery_compat
from jobhandle_celery.testing import discovery
from tests.testing import service
from tests.testing.service import NOWHERE

SHOP = f"""
from celery import Celery
from jobhandle_celery import Jobs

app = Celery("shop", broker="redis://{NOWHERE}/0", set_as_current=False)
jobs = Jobs(app, "postgresql+psycopg://{NOWHERE}/shop")


@app.task(shared=False)
def thumbnail(path):
    return path
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A service in ``shop.py``, whose tests run in this process."""
    pytester.makepyfile(shop=SHOP)
    pytester.syspathinsert()
    return pytester


def run(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    return project.runpytest_inprocess("-p", "no:xdist", "-p", "no:cacheprovider", *options)


def test_app_is_named_in_the_configuration(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\njobhandle_app = shop\naddopts = --strict-markers")
    project.makepyfile(
        """
        import pytest

        def test_one(jobs):
            import shop
            shop.jobs.submit(shop.thumbnail.s("a.tif"))
            jobs.assert_submitted("shop.thumbnail", args=["a.tif"])

        @pytest.mark.jobhandle(jobhandle_namespace="other")
        def test_two(jobhandle_jobs, advance, lose_worker, deliver_twice, database_away):
            assert jobhandle_jobs.find() == []
        """
    )
    run(project).assert_outcomes(passed=2)


@pytest.mark.timeout(300)  # three processes start one after the other, on a busy machine in minutes
def test_processes_of_xdist_share_no_jobs(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # each process would import all of them
    project.makeini("[pytest]\njobhandle_app = shop")
    project.makepyfile(
        """
        import pytest, shop

        @pytest.mark.parametrize("number", range(40))
        def test_one(jobs, number):
            shop.jobs.submit(shop.thumbnail.s(number))
            assert [job.result for job in jobs.run_jobs()] == [number]
            assert len(shop.jobs.find()) == 1
        """
    )
    plugins = ("-p", "xdist", "-p", "jobhandle_celery.testing.plugin")
    ran = project.runpytest_subprocess(*plugins, "-n", "2", "-p", "no:cacheprovider")
    ran.assert_outcomes(passed=40)


def test_app_is_named_by_a_fixture(project: pytest.Pytester) -> None:
    project.makeconftest(
        """
        import pytest, shop

        @pytest.fixture(scope="session")
        def jobhandle_app():
            return shop.jobs

        @pytest.fixture
        def jobs():
            return "the project's own"
        """
    )
    project.makepyfile(
        """
        import shop

        def test_one(jobs, jobhandle_jobs):
            assert jobs == "the project's own"
            assert jobhandle_jobs.perform(shop.thumbnail.s(1)) == 1
        """
    )
    run(project).assert_outcomes(passed=1)


def test_failure_shows_the_jobs_and_the_line_of_the_test(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\njobhandle_app = shop:app")
    project.makepyfile(
        """
        import shop

        def test_one(jobs):
            jobs.submit(shop.thumbnail.s("b.tif"), username="ann")
            jobs.assert_submitted(shop.thumbnail, args=["a.tif"])
        """
    )
    result = run(project)
    result.stdout.fnmatch_lines(
        [
            '>       jobs.assert_submitted(shop.thumbnail, args=["a.tif"])',
            "E       Failed: no job of shop.thumbnail with args=['a.tif'] was submitted.",
            "E       1 job was submitted, nearest first:",
            "E         job 1 of ann: shop.thumbnail('b.tif'), Queued",
            "E           args: ['b.tif'], not ['a.tif']",
        ]
    )
    result.stdout.no_fnmatch_line("*kit.py*")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere was not found"),
        ("shop:thumbnail", "has no Jobs"),
        ("shop:missing", "was not found"),
    ],
)
def test_wrong_name_of_an_app_is_an_error(project: pytest.Pytester, name: str, message: str) -> None:
    project.makeini(f"[pytest]\njobhandle_app = {name}")
    project.makepyfile("def test_one(jobs): ...")
    result = run(project)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"E *ConfigurationError: jobhandle_app: *{message}*"])


def test_task_is_not_taken_for_the_current_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is used, a task is a proxy, as the current app is."""
    monkeypatch.setattr("celery._state._tls.current_app", service.app)
    task = Celery("shop", set_as_current=False).task(shared=False)(run)
    with pytest.raises(ConfigurationError, match="has no Jobs"):
        discovery.jobs_of(task)


def test_the_only_app_with_jobs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    apps: list[Any] = [Celery("without", set_as_current=False), service.app]
    monkeypatch.setattr(celery_compat, "apps_of_process", lambda: apps)
    assert discovery.jobs_of(discovery.app_in_use()) is service.jobs
    other = Celery("other", set_as_current=False)
    Jobs(other, f"postgresql+psycopg://{NOWHERE}/other")
    apps.append(other)
    with pytest.raises(
        ConfigurationError, match=r"2 apps have Jobs: <Celery other at .*>, <Celery service at .*\. W"
    ):
        discovery.app_in_use()
    apps.clear()
    with pytest.raises(
        ConfigurationError, match=r"No app with Jobs has been imported.*\(jobhandle_app = shop:app\)"
    ):
        discovery.app_in_use()


def test_plugin_is_an_entry_point() -> None:
    (found,) = (entry for entry in entry_points(group="pytest11") if entry.name == "jobhandle")
    assert found.value == "jobhandle_celery.testing.plugin"


def test_plugin_imports_nothing_else() -> None:
    """It is loaded in every run of pytest where the library is installed."""
    script = (
        "import sys, pytest; before = set(sys.modules); import jobhandle_celery.testing.plugin; "
        "print(*sorted(set(sys.modules) - before))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    package = "jobhandle_celery"
    assert ran.stdout.split() == [package, f"{package}.testing", f"{package}.testing.plugin"]
