"""The model of the leases of workers, and of the passes of a sweep; time is in minutes from 0."""

from dataclasses import dataclass, field

LEASE = 20.5
"""Half minutes, while time passes by whole ones: nothing becomes due at the time of a check."""
INTERVAL, UNBROKEN = 0.5, LEASE / 6


@dataclass
class ModelLeases:
    """The leases and the passes of one namespace."""

    now: float = 0.0
    leases: dict[str, float] = field(default_factory=dict)
    last_pass: float | None = None
    unbroken_since: float = 0.0

    def alive(self, worker_uid: str | None) -> bool:
        return worker_uid is not None and self.leases.get(worker_uid, 0.0) > self.now

    def trust_leases(self) -> None:
        """As after passes that have followed each other closely for long."""
        self.last_pass, self.unbroken_since = self.now, self.now - 2 * LEASE

    def begin_pass(self) -> bool | None:
        gap = None if self.last_pass is None else self.now - self.last_pass
        if gap is not None and gap < INTERVAL:
            return None
        if gap is None or gap > UNBROKEN:
            self.unbroken_since = self.now
        self.last_pass = self.now
        return self.now - self.unbroken_since >= LEASE

    def renew(self, worker_uid: str) -> bool:
        known = worker_uid in self.leases
        self.leases[worker_uid] = self.now + LEASE
        return known

    def lapsed(self) -> set[str]:
        return {worker_uid for worker_uid, until in self.leases.items() if until <= self.now}
