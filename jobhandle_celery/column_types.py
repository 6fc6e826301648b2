"""Column types whose values are the same on every database."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Dialect, SmallInteger, String, Text
from sqlalchemy.types import TypeDecorator

from .status import JobStatus


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC datetimes, to the microsecond, on every database; a naive value is refused.

    SQLite and MariaDB return naive values even for a column with a time zone.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Return the column type: MySQL's DATETIME has no fraction unless asked for."""
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(_mysql().DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a naive time; store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise TypeError(f"{value!r} has no time zone")
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Status(TypeDecorator[JobStatus]):
    """A `JobStatus` by its id in ``jobhandle_job_status``."""

    impl = SmallInteger
    cache_ok = True

    def process_bind_param(self, value: JobStatus | None, dialect: Dialect) -> int | None:
        """Store the id."""
        return None if value is None else JobStatus(value).id

    def process_result_value(self, value: int | None, dialect: Dialect) -> JobStatus | None:
        """Return the status."""
        return None if value is None else JobStatus.from_id(value)


class Name(TypeDecorator[str]):
    """Text that is compared exactly: to MariaDB's default collations ANN, änn and "ann " equal ann."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Return the column type, on MariaDB with a collation that compares bytes."""
        length: int = self.impl_instance.length  # type: ignore[attr-defined]  # String's
        if dialect.name not in ("mysql", "mariadb"):
            return dialect.type_descriptor(String(length))
        return dialect.type_descriptor(_mysql().VARCHAR(length, collation="utf8mb4_nopad_bin"))


class MysqlLongText(TypeDecorator[str]):
    """Text of any length and character: MariaDB's TEXT ends at 64 KiB, and may be latin1."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Return the column type."""
        return dialect.type_descriptor(_mysql().LONGTEXT(collation="utf8mb4_nopad_bin"))


def _mysql() -> Any:
    # Imported only where it is used: it imports the dialects of all its drivers.
    from sqlalchemy.dialects import mysql

    return mysql
