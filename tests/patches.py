"""Ways in which a tool patches a method."""

from typing import Any


class Proxy:
    """A patched method as wrapt makes it, which pretends to be what it wraps."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def __get__(self, owner: Any, kind: Any = None) -> "Proxy":
        return Proxy(self._wrapped.__get__(owner, kind))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    @property  # type: ignore[misc]  # read-only, as wrapt's
    def __class__(self) -> Any:
        return self._wrapped.__class__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped(*args, **kwargs)


def replaced(_: Any) -> Any:
    return lambda *_, **__: None


PATCHES = [replaced, Proxy]
