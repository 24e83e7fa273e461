"""An answer that is worked out when it is awaited."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Later(Generic[T]):
    """An awaitable that makes its coroutine when it is awaited.

    A call whose caller goes away is dropped before anybody awaits it; a coroutine would complain about that.
    """

    __slots__ = ("_arguments", "_function")

    def __init__(
        self, function: Callable[P, Coroutine[Any, Any, T]], *arguments: P.args, **_none: P.kwargs
    ) -> None:
        self._function: Callable[..., Coroutine[Any, Any, T]] = function
        self._arguments = arguments

    def __await__(self) -> Generator[Any, None, T]:
        return self._function(*self._arguments).__await__()
