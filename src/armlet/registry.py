"""A typed table from a name to a thing; a duplicate name is an error, an unknown one names the nearest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from armlet.errors import UsageError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps the names that users write to the things they mean.

    Args:
        what: what the table holds, in the singular, for messages ("pass", "data set").
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters a thing under `name`.

        Raises:
            ValueError: the name is taken.
        """

        def enter(thing: T) -> T:
            if name in self._things:
                raise ValueError(f"{self._what} {name!r} is registered twice")
            self._things[name] = thing
            return thing

        return enter

    def __getitem__(self, name: str) -> T:
        try:
            return self._things[name]
        except KeyError:
            raise UsageError(f"unknown {self._what} {name!r} ({nearest(name, self._things)})") from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._things))

    def __len__(self) -> int:
        return len(self._things)
