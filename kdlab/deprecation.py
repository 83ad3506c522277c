"""Renamed arguments that keep their old names for one release."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

_Init = TypeVar("_Init", bound=Callable[..., None])


def renamed(**names: str) -> Callable[[_Init], _Init]:
    """Make a constructor accept old names of its arguments, with a ``DeprecationWarning``.

    An old name becomes a keyword-only argument in the signature, ``None`` unless given, so configs that set it by class
    path still parse. The module must postpone its annotations (``from __future__ import annotations``).

    Args:
        names: old name = new name.

    >>> class Scale:
    ...     @renamed(normalise="normalize")
    ...     def __init__(self, normalize: bool = False) -> None:
    ...         self.normalize = normalize
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     Scale(normalise=True).normalize
    True
    """

    def decorate(init: _Init) -> _Init:
        @functools.wraps(init)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
            for old, new in names.items():
                if (value := kwargs.pop(old, None)) is not None:
                    message = f"{type(self).__name__}: the argument {old!r} is deprecated; use {new!r}."
                    warnings.warn(message, DeprecationWarning, stacklevel=2)
                    kwargs[new] = value
            init(self, *args, **kwargs)

        signature = inspect.signature(init)
        optional: dict[str, Any] = {"kind": inspect.Parameter.KEYWORD_ONLY, "default": None}
        aliases = [
            signature.parameters[new].replace(name=old, annotation=f"{init.__annotations__[new]} | None", **optional)
            for old, new in names.items()
        ]
        wrapper.__dict__["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), *aliases])
        wrapper.__annotations__ = {**init.__annotations__, **{alias.name: alias.annotation for alias in aliases}}
        return wrapper  # type: ignore[return-value]

    return decorate
