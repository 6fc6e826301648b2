"""What `import jobhandle_celery` gives, and what it does not cost."""

import subprocess
import sys

import pytest

import jobhandle_celery


@pytest.mark.parametrize("name", jobhandle_celery.__all__)
def test_a_public_name_is_there(name: str) -> None:
    value = getattr(jobhandle_celery, name)
    assert value.__name__ == name
    assert value.__module__.startswith("jobhandle_celery.")
    assert name in dir(jobhandle_celery)


def test_no_other_name_is_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'JobsHandle'"):
        jobhandle_celery.JobsHandle  # type: ignore[attr-defined]  # noqa: B018  # the look is the test
    with pytest.raises(ImportError, match="JobsHandle"):
        from jobhandle_celery import JobsHandle  # type: ignore[attr-defined]  # noqa: F401  # the same


def test_the_bare_import_waits_for_nobody() -> None:
    said = "import sys, jobhandle_celery; print(*{'sqlalchemy', 'celery', 'redis'} & {*sys.modules})"
    asked = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert asked.stdout.split() == []
