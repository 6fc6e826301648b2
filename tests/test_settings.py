"""Settings: their sources and defaults, and what is refused by name."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
from celery import Celery

from jobhandle_celery import (
    ConfigurationError,
    Job,
    Jobs,
    JobStatus,
    UnknownJobError,
)
from jobhandle_celery.settings import NAMES, Settings, ignored, read
from jobhandle_celery.worker import bootstep
from tests.apps import make_app
from tests.configured import jobs_of
from tests.embedded import embedded_worker


def test_unknown_settings_are_found_with_nearest_name() -> None:
    class DjangoSettings:
        CELERY_JOBHANDLE_LEESE = 4
        CELERY_JOBHANDLE_LEASE = 30
        JOBHANDLE_OF_THE_SITE = 2

    app = Celery("settings", set_as_current=False)
    app.config_from_object(DjangoSettings, namespace="CELERY")
    assert ignored(app.conf) == {"CELERY_JOBHANDLE_LEESE": "jobhandle_lease"}
    app = make_app("memory://", None, {f"jobhandle_{name}": None for name in NAMES})
    assert ignored(app.conf) == {}
    app.conf.update(jobhandle_durabel=True, jobhandle_xyz=1, my_jobhandle_key=1)
    assert ignored(app.conf) == {"jobhandle_durabel": "jobhandle_durable", "jobhandle_xyz": None}


def test_worker_logs_unknown_settings(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(bootstep.logger, "warning", lambda text, *args: logged.append(text % args))
    app = make_app("memory://", sqlite_url, {"jobhandle_leese": 5})
    with embedded_worker(app):
        pass
    assert "the configuration has jobhandle_leese, which is no setting of jobhandle-celery" in logged
    app.jobs.close()  # type: ignore[attr-defined]  # made by Jobs


def test_settings_have_the_defaults_of_the_design() -> None:
    assert read(lambda key: None) == Settings(
        lease=timedelta(seconds=60),
        sweep_interval=timedelta(seconds=1),
        republish_after=timedelta(seconds=60),
        publish_grace=timedelta(seconds=5),
        namespace="default",
        schema=None,
        progress_events=True,
        fast_publish=True,
    )


def test_republish_delay_doubles_to_a_quarter_of_an_hour() -> None:
    delays = [Settings().republish_delay(publish_count).total_seconds() / 60 for publish_count in range(1, 8)]
    assert delays == [1, 2, 4, 8, 15, 15, 15]
    assert Settings().republish_delay(10**9) == timedelta(minutes=15)
    assert Settings(republish_after=timedelta(hours=1)).republish_delay(5) == timedelta(hours=1)


def test_durations_are_seconds_or_timedeltas() -> None:
    given = {
        "jobhandle_lease": 30,
        "jobhandle_publish_grace": 0.5,
        "jobhandle_republish_after": timedelta(minutes=2),
    }
    settings = read(given.get)
    assert settings.lease == timedelta(seconds=30)
    assert settings.publish_grace == timedelta(seconds=0.5)
    assert settings.republish_after == timedelta(minutes=2)


@pytest.mark.parametrize("key", ["lease", "sweep_interval", "republish_after", "publish_grace"])
def test_bad_duration_is_refused_by_name(key: str) -> None:
    for value in (0, -1, "60", True, float("nan"), float("inf"), 10**400, timedelta(0), [60]):
        with pytest.raises(ConfigurationError, match=f"jobhandle_{key}: .*accepted"):
            read({f"jobhandle_{key}": value}.get)


@pytest.mark.parametrize("key", ["namespace", "schema"])
def test_bad_name_is_refused_by_name(key: str) -> None:
    for value in ("", "x" * 64, 5, True, ["a"]):
        with pytest.raises(ConfigurationError, match=f"jobhandle_{key}: .*accepted"):
            read({f"jobhandle_{key}": value}.get)


@pytest.mark.parametrize("name", ["progress_events", "fast_publish"])
def test_switch_accepts_true_or_false_only(name: str) -> None:
    assert getattr(read({f"jobhandle_{name}": False}.get), name) is False
    with pytest.raises(ConfigurationError, match=rf"jobhandle_{name}: .*accepted"):
        read({f"jobhandle_{name}": "no"}.get)


def test_bad_setting_comes_out_at_the_first_use(sqlite_url: str) -> None:
    jobs = jobs_of(sqlite_url, jobhandle_lease=-1)
    for use in (jobs.handle, jobs.count_by_status, jobs.sweep, jobs.upgrade_schema):
        with pytest.raises(ConfigurationError, match="jobhandle_lease"):
            use()


def test_settings_from_any_source_count_until_first_use(sqlite_url: str) -> None:
    app = Celery("late", broker="memory://", set_as_current=False)
    jobs = Jobs(app)
    app.conf.jobhandle_database_url = sqlite_url
    app.conf.jobhandle_namespace = "late"
    job_id = jobs.handle().submit(Job(task="unregistered"))
    jobs.close()
    settings = SimpleNamespace(
        CELERY_JOBHANDLE_DATABASE_URL=sqlite_url,
        CELERY_JOBHANDLE_NAMESPACE="late",
        CELERY_BROKER_URL="memory://",
    )
    django = Celery("django", set_as_current=False)
    its_jobs = Jobs(django)
    django.config_from_object(settings, namespace="CELERY")
    assert its_jobs.attach(job_id).job_status() is JobStatus.QUEUED
    its_jobs.close()
    default = jobs_of(sqlite_url)
    with pytest.raises(UnknownJobError):
        default.attach(job_id)
    default.close()
