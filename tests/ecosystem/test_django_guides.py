"""The code of the guides for Django and from django-celery-results 2.6 runs."""

import re
from pathlib import Path

import pytest

from tests.documentation import PAGES, blocks, files, python

pytestmark = pytest.mark.ecosystem


def write_site(folder: Path, *pages: str) -> None:
    """Write the files of a Django project; those of a later page replace those of an earlier one."""
    for page in pages:
        for name, code in files(page).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(code.replace("redis://localhost:6379/0", "memory://"))


def test_django_guide_submits_after_the_commit(tmp_path: Path) -> None:
    page = "docs/how-to/django.md"
    write_site(tmp_path, page)
    view = "\n".join(block.code for block in blocks(page, "python") if not block.file)
    (tmp_path / "view.py").write_text(
        "import mysite, django\n"
        "django.setup()\n"
        f"{view}\n"
        "jobs.upgrade_schema()\n"
        "from mysite.nightly import clean_up\n"
        "print(clean_up.delay().job_id == clean_up.delay().job_id)\n"
        "mysite.celery_app.conf.task_always_eager = True\n"
        "place_order('a.tif', 'ann')\n"
        "order_again('b.tif', 'ann')\n"
        "print(*[job.result for job in jobs.find(username='ann')])\n"
    )
    results = "{'path': 'b.tif', 'size': 96} {'path': 'a.tif', 'size': 96}"
    assert python("view.py", folder=tmp_path) == f"True\n{results}\n"


def test_guide_from_django_celery_results_runs(tmp_path: Path) -> None:
    page = "docs/how-to/from-django-celery-results.md"
    write_site(tmp_path, "docs/how-to/django.md", page)
    views = "\n".join(block.code for block in blocks(page, "python") if not block.file)
    (tmp_path / "before.py").write_text(
        "import mysite, django\n"
        "django.setup()\n"
        "from django.core.management import call_command\n"
        "call_command('migrate', verbosity=0)\n"
        "mysite.celery_app.jobs.upgrade_schema()\n"
        "mysite.celery_app.conf.update(task_always_eager=True, task_store_eager_result=True)\n"
        f"{views}\n"
        "print(result.id)\n"
        "print(sorted(field.name for field in TaskResult._meta.get_fields()))\n"
    )
    task_id, fields = python("before.py", folder=tmp_path).splitlines()
    table = PAGES[page].split("| of `TaskResult`")[1].split("\n\n")[0]
    explained = [
        name for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for name in row.split(", ")
    ]
    assert str(sorted(["id", *(name.strip("`") for name in explained)])) == fields
    (tmp_path / "after.py").write_text(
        "import os\n"
        "os.environ['DJANGO_SETTINGS_MODULE'] = 'mysite.settings_after'\n"
        "import mysite, django\n"
        "django.setup()\n"
        "from celery.result import AsyncResult\n"
        f"print(AsyncResult({task_id!r}).get(timeout=60))\n"
    )
    assert python("after.py", folder=tmp_path) == "{'path': 'a.tif', 'size': 96}\n"
