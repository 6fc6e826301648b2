"""Runs docker-compose with a project of the test."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.workers import ROOT


class Compose:
    """One project of the repository's `docker-compose.yml`."""

    def __init__(
        self, command: Sequence[str], project: str, settings: Mapping[str, str], folder: Path
    ) -> None:
        env_file = folder / ".env"
        env_file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        self._command = [*command, f"--project-name={project}", f"--env-file={env_file}"]
        self.project = project

    def __call__(self, *arguments: str, timeout: float = 300) -> str:
        """Run a command; return its standard output.

        Raises:
            AssertionError: it failed.
        """
        done = self.attempt(*arguments, timeout=timeout)
        assert done.returncode == 0, (
            f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout

    def attempt(self, *arguments: str, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        """Run a command that may fail."""
        return subprocess.run(
            [*self._command, *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            # These variables override the file.
            env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
        )

    def python(self, program: str) -> Any:
        """Run a program that prints JSON in the container of Flower, which has the app; return the value."""
        imports = "import json, time; from tasks.application import jobs; from jobhandle_celery import Job\n"
        output = self("exec", "-T", "flower", "python", "-c", imports + program)
        return json.loads(output.splitlines()[-1])

    def containers(self, service: str) -> "list[Container]":
        """Return the containers of a service."""
        return [Container(number) for number in self("ps", "--quiet", service).split()]


class Container:
    """A container, asked without docker-compose: that needs half a second of processor time to answer."""

    def __init__(self, number: str) -> None:
        self._number = number

    def inspect(self) -> dict[str, Any]:
        (found,) = json.loads(self._docker("inspect").stdout)
        return dict(found)

    def logs(self) -> str:
        """Return what its program has printed, to either stream."""
        printed = self._docker("logs")
        return printed.stdout + printed.stderr

    def _docker(self, command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["docker", command, self._number], capture_output=True, text=True, check=True)
