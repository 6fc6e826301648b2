"""Batches of bounded count and size."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def slices(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in their order, at most `size` at a time."""
    every = list(items)
    for start in range(0, len(every), size):
        yield every[start : start + size]


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
