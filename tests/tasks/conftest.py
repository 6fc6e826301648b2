"""Configures the demo's app in this process, with a folder for programs."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def _configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Configure the app before its first use: nothing may appear in the current directory."""
    folder = tmp_path_factory.mktemp("tasks-app")
    (folder / "scripts").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOBHANDLE_DATABASE_URL", f"sqlite:///{folder}/jobs.sqlite3")
        patch.setenv("JOBHANDLE_BROKER_URL", "memory://")
        from tasks import app

        assert app.conf.broker_url == "memory://"
        yield


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder whose programs `run_script` may run in this process."""
    from tasks import app

    folder = tmp_path / "scripts"
    folder.mkdir()
    monkeypatch.setitem(app.conf, "scripts_folder", str(folder))
    return folder
