"""Configures the demo's app in this process, with a folder for programs."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def _configured(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Configure the app, even if another test has used it: nothing may appear in the current directory."""
    from tasks import app

    folder = tmp_path_factory.mktemp("tasks-app")
    (folder / "scripts").mkdir()
    app.conf.update(broker_url="memory://", jobhandle_database_url=f"sqlite:///{folder}/jobs.sqlite3")


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder whose programs `run_script` may run in this process."""
    from tasks import app

    folder = tmp_path / "scripts"
    folder.mkdir()
    monkeypatch.setitem(app.conf, "scripts_folder", str(folder))
    return folder
