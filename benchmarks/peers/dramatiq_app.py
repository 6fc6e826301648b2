"""Broker and actor of Dramatiq. Imports an optional dependency."""

import os
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from .. import marks


def make_actor(redis_url: str) -> Any:
    """Create the actor, with a broker of its own."""
    broker = RedisBroker(url=redis_url)
    dramatiq.set_broker(broker)
    return dramatiq.actor(marks.body, actor_name="body", broker=broker)


if "BENCHMARK_BROKER" in os.environ:  # in a worker
    actor = make_actor(os.environ["BENCHMARK_BROKER"])
