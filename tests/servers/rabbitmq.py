"""A RabbitMQ of our own, from the PATH; as `nobody` under root."""

import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from tests.reaper import Reaper
from tests.servers.places import fast_folder, free_port, on_path, session_of
from tests.servers.server import Reached, Server, ServerMissing, start_first


class RabbitmqServer(Server):
    """A single-node cluster with the management plugin and its own Erlang naming daemon."""

    name = "RabbitMQ"
    end_signal = signal.SIGTERM
    last_signal = signal.SIGKILL  # its orderly shutdown takes more than ten seconds
    starts_within = 90.0

    def __init__(self, programs: Path, folder: Path, reaper: Reaper) -> None:
        super().__init__(programs, folder, reaper)
        self.user = "nobody" if os.geteuid() == 0 else None
        self.data = Path(tempfile.mkdtemp(prefix="jobhandle-test-rabbitmq-data-", dir=fast_folder()))
        self.settings: dict[str, object] = {}
        """Lines of rabbitmq.conf that the next start reads."""
        self._management_port = self._naming_port = self._distribution_port = 0
        reaper.remove_folder(self.data)

    @property
    def url(self) -> str:
        """The URL of its virtual host "/", as an administrator."""
        return f"amqp://tests:{self.password}@127.0.0.1:{self.port}//"

    @property
    def management(self) -> "Management":
        return Management(*self.reached.management)

    @property
    def reached(self) -> Reached:
        return Reached(self.url, (f"http://127.0.0.1:{self._management_port}", "tests", self.password))

    @property
    def command(self) -> list[str]:
        variables = {
            **self._variables,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": self.port,
            "RABBITMQ_DIST_PORT": self._distribution_port,
            "RABBITMQ_BASE": self.folder,
            "RABBITMQ_MNESIA_BASE": self.data,
            "RABBITMQ_FEATURE_FLAGS_FILE": self.data / "feature-flags",
            "RABBITMQ_LOG_BASE": self.folder,
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": self.folder / "pid",
            "RABBITMQ_SCHEMA_DIR": self.folder / "schema",
            "RABBITMQ_GENERATED_CONFIG_DIR": self.folder / "generated",
            "RABBITMQ_CONFIG_FILE": self._configuration,
            "RABBITMQ_ADVANCED_CONFIG_FILE": self.folder / "none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self._plugins,
            # Replaces the shell, so that the signals we send reach the server itself.
            "RABBITMQ_ALLOW_INPUT": 1,
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
        }
        # A naming daemon started by the server would outlive it and could not be found.
        script = f'epmd & exec "{self.programs / "rabbitmq-server"}"'
        return [*_only_with(variables), "sh", "-c", script]

    def prepare(self) -> None:
        if shutil.which("erl") is None or shutil.which("epmd") is None:
            raise ServerMissing("there is no Erlang")
        self._plugins.write_text("[rabbitmq_management].")
        if self.user is not None:
            for path in (self.folder, self.data, self._plugins):
                shutil.chown(path, self.user)

    def start(self) -> None:
        """Start it with these settings, which later starts keep."""
        self._management_port, self._naming_port, self._distribution_port = (free_port() for _ in range(3))
        settings = {
            "default_user": "tests",
            "default_pass": self.password,
            "management.tcp.ip": "127.0.0.1",
            "management.tcp.port": self._management_port,
            "log.console.level": "warning",
            # The tests' folder may be on a small disk.
            "disk_free_limit.absolute": "10MB",
            **self.settings,
        }
        self._configuration.write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))
        self._configuration.chmod(0o600)
        if self.user is not None:
            shutil.chown(self._configuration, self.user)
        super().start()

    def forget(self) -> None:
        """Remove its data while it is down: the next start is a fresh one."""
        assert self._process is None, f"{self.name} runs"
        for path in self.data.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def control(self, *words: str) -> None:
        """Run `rabbitmqctl`, which takes a second or two."""
        command = [*_only_with(self._variables), str(self.programs / "rabbitmqctl"), *words]
        completed = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, **session_of(self.user)
        )
        assert completed.returncode == 0, completed.stderr or completed.stdout

    def answers(self) -> bool:
        """Return whether it listens, its last step of a start."""
        try:
            self.management.ask("GET", f"health/checks/port-listener/{self.port}")
        except OSError:
            return False
        return True

    @property
    def folders(self) -> list[Path]:
        return [*super().folders, self.data]

    @property
    def _variables(self) -> dict[str, object]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": self.folder,  # for Erlang's cookie
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": "jobhandle@localhost",
            # No file: the configuration of the machine's own server must not apply.
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "ERL_CRASH_DUMP": "/dev/null",
            "ERL_EPMD_PORT": self._naming_port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    @property
    def _configuration(self) -> Path:
        return self.folder / "rabbitmq.conf"

    @property
    def _plugins(self) -> Path:
        return self.folder / "plugins"


class Management:
    """The HTTP interface of RabbitMQ's management plugin, as far as the tests need it."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self._url = url
        passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
        passwords.add_password(None, url, user, password, is_authenticated=True)
        authentication = urllib.request.HTTPBasicAuthHandler(passwords)
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), authentication)

    @classmethod
    def of(cls, amqp_url: str, url: str | None = None) -> "Management":
        """Return the interface of an AMQP URL's server, at the default port unless a URL is given."""
        parts = urlsplit(amqp_url)
        return cls(
            url or f"http://{parts.hostname}:15672",
            unquote(parts.username or "guest"),
            unquote(parts.password or "guest"),
        )

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        """Return the answer.

        Raises:
            OSError: it does not answer, or with an error (`urllib.error.HTTPError`).
        """
        request = urllib.request.Request(
            f"{self._url}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with self._opener.open(request, timeout=10) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def create_virtual_host(self, name: str) -> None:
        self.ask("PUT", f"vhosts/{quote(name, safe='')}", {})

    def delete_virtual_host(self, name: str) -> None:
        self.ask("DELETE", f"vhosts/{quote(name, safe='')}")


class VirtualHosts:
    """Empty virtual hosts of a RabbitMQ, unique among all test runs on it."""

    def __init__(self, url: str, management: Management) -> None:
        self.management = management
        self._url = url
        self._prefix = f"jobhandle-test-{os.getpid()}-{secrets.token_hex(3)}"
        self._numbers = itertools.count(1)
        self._made: list[str] = []

    def create(self) -> str:
        """Make a virtual host and return its URL."""
        name = f"{self._prefix}-{next(self._numbers)}"
        self.management.create_virtual_host(name)
        self._made.append(name)
        return in_virtual_host(self._url, name)

    def remove(self) -> None:
        for name in self._made:
            self.management.delete_virtual_host(name)


def in_virtual_host(url: str, name: str) -> str:
    """Return an AMQP URL with another virtual host."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{quote(name, safe='')}"))


def _only_with(variables: Mapping[str, object]) -> list[str]:
    return ["env", "-i", *(f"{name}={value}" for name, value in variables.items())]


def own_rabbitmq(reaper: Reaper) -> RabbitmqServer:
    """Start a RabbitMQ of our own (about four seconds); the caller ends it with `discard()`.

    Raises:
        ServerMissing: with the reason.
    """
    return start_first(RabbitmqServer, reaper, on_path("rabbitmq-server", "rabbitmqctl"))
