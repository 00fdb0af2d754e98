"""What takes long to make, and is made once, when it is first asked for: weights that a reward reads."""

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """``make(*args)`` at the first call, kept for the others; threads that ask meanwhile wait for it.

    What was made stays out of pickles and copies, which make their own: weights are read where they are used, and do
    not travel to another process. A call that raises is made again at the next one.
    """

    def __init__(self, make: Callable[..., T], *args: Any) -> None:
        self._make, self._args = make, args
        self._made: list[T] = []
        self._lock = threading.Lock()

    def __call__(self) -> T:
        """What was made. Raises what ``make`` raises."""
        with self._lock:
            if not self._made:
                self._made.append(self._make(*self._args))
        return self._made[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return Once, (self._make, *self._args)
