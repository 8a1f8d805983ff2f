"""Small files of JSON that lie where others write too: how long they may be, and what must be in them to be used.

Whatever is wrong with such a file is a `ValueError` here, or the disk's `OSError`. Its reader says which file it was,
what was expected there and what to do, in the error that is his (`told`).
"""

import json
from collections.abc import Callable, Collection, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from gracl.errors import GraclError, expected
from gracl.images import storage

# Our own are of some kilobytes. What Python makes of a text may take thirty times as much.
MAX_BYTES = 16 * 2**20


def read_values(uri: str, *, at_most: int = MAX_BYTES) -> dict[str, Any]:
    """The object of JSON that a file is.

    Raises:
        OSError: it cannot be read, is no plain file, or has more than `at_most` bytes.
        ValueError: it is no JSON in UTF-8, something else than an object, or nested too deeply.
        StorageError: the store does not answer.
    """
    content = storage.read_plain(uri, at_most=at_most)
    try:
        values = json.loads(content.decode())
    except RecursionError:
        raise ValueError("no JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"a {type(values).__name__} where an object is to be")
    return values


def check_values(values: Mapping[str, Any], kinds: Mapping[str, Any], *, optional: Collection[str] = ()) -> None:
    """Refuses an object in which a value is missing, or of another kind; values that nobody named are let be.

    Args:
        values: as they were read.
        kinds: what each is to be, as in an annotation: `int`, `str | None`, `list[dict[str, float]]`, ...
        optional: those that need not be there.

    Raises:
        ValueError: naming all that is wrong.
    """
    missing = [name for name in kinds if name not in values and name not in optional]
    wrong = [name for name, kind in kinds.items() if name in values and not fits(values[name], kind)]
    found = [f"no {name}" for name in missing] + [f"{name}: {_short(values[name])}" for name in wrong]
    if found:
        raise ValueError("; ".join(found))


def fits(value: object, kind: Any) -> bool:
    """Whether a value of JSON is of a kind. Whole numbers are floats too, true and false are no numbers, and text is
    what can be written as UTF-8."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if kind in (None, NoneType):
        return value is None
    if kind is float:
        return type(value) in (int, float)
    if kind is str:
        return isinstance(value, str) and not any("\ud800" <= sign <= "\udfff" for sign in value)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin in (list, tuple):
        each = inner[:1] * len(value) if isinstance(value, list) and (origin is list or ... in inner) else inner
        return (
            isinstance(value, list)
            and len(each) == len(value)
            and all(fits(one, wanted) for one, wanted in zip(value, each, strict=True))
        )
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(fits(a, inner[0]) and fits(b, inner[1]) for a, b in value.items())
    return type(value) is kind


def told(uri: str, what: str, read: Callable[[str], Any], error: type[GraclError], do: str) -> Any:
    """What `read` makes of a file, or an error that names it.

    Args:
        uri: of the file.
        what: was expected, and where.
        read: takes the file's URI.
        error: which error it is to be.
        do: what to do about it.

    Raises:
        error: `read` could not.
        StorageError: the store does not answer.
    """
    try:
        return read(uri)
    except (OSError, ValueError) as fault:
        raise error(expected(what, _short(str(fault) or type(fault).__name__), do)) from fault


def _short(value: object) -> str:
    """A value for an error's text: a hostile one may be of any length, or nested so that it cannot even be written."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
