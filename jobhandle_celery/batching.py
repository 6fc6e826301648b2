"""Many things in pieces of bounded number and size. Imports nothing of ours."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def pieces(things: Iterable[T], most: int, size: Callable[[T], int], largest: int) -> Iterator[list[T]]:
    """Yield lists of at most so many things, whose sizes add up to no more than the largest; or of one."""
    piece: list[T] = []
    filled = 0
    for thing in things:
        length = size(thing)
        if piece and (len(piece) == most or filled + length > largest):
            yield piece
            piece, filled = [], 0
        piece.append(thing)
        filled += length
    if piece:
        yield piece
