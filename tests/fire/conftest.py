"""Crowds for the tests under fire, on sites as those of the tests with real workers."""

from tests.worker.conftest import module_site, new_site, second_redis_url

__all__ = ["module_site", "new_site", "second_redis_url"]
