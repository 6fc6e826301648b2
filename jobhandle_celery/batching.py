"""Batches of bounded count and size."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def batches(items: Iterable[T], most: int, size: Callable[[T], int], largest: int) -> Iterator[list[T]]:
    """Yield lists of at most `most` items whose sizes add up to at most `largest`, or of one larger item."""
    batch: list[T] = []
    filled = 0
    for item in items:
        length = size(item)
        if batch and (len(batch) == most or filled + length > largest):
            yield batch
            batch, filled = [], 0
        batch.append(item)
        filled += length
    if batch:
        yield batch
