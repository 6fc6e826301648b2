"""Configures the demo's app in this process, with a folder for programs."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def _configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Configure the app, even if another test has used it: nothing may appear in the current directory."""
    folder = tmp_path_factory.mktemp("tasks-app")
    (folder / "scripts").mkdir()
    database, broker = f"sqlite:///{folder}/jobs.sqlite3", "memory://"
    with pytest.MonkeyPatch.context() as patch:
        # For the first use, which reads the variables; a later one needs the configuration itself.
        patch.setenv("JOBHANDLE_DATABASE_URL", database)
        patch.setenv("JOBHANDLE_BROKER_URL", broker)
        from tasks import app

        patch.setitem(app.conf, "jobhandle_database_url", database)
        patch.setitem(app.conf, "broker_url", broker)
        yield


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder whose programs `run_script` may run in this process."""
    from tasks import app

    folder = tmp_path / "scripts"
    folder.mkdir()
    monkeypatch.setitem(app.conf, "scripts_folder", str(folder))
    return folder
