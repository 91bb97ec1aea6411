"""One JSON document that is a list of objects, or an object that holds exactly one such list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from peftctl.data.readers.contract import BOM, Numbered, not_utf8
from peftctl.data.readers.jsonl import checked, has_escapes
from peftctl.errors import DataError

LINES = "a file with one object a line is named .jsonl"


def read(where: str, file: BinaryIO) -> Iterator[Numbered]:
    """The objects of the list, numbered from 1. The file is read whole."""
    data = file.read().removeprefix(BOM)
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: {not_utf8(error, 'file')}") from None
    except json.JSONDecodeError as error:
        hint = LINES if error.msg == "Extra data" else ""
        raise DataError(f"{where}:{error.lineno}:{error.colno}: not JSON: {error.msg}", hint) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    escapes = has_escapes(data)
    for number, item in enumerate(_list(where, value), start=1):
        yield number, checked(item, escapes=escapes)


def _list(where: str, value: Any) -> list[Any]:
    wanted = "allowed: a list of objects, or an object that holds exactly one"
    if isinstance(value, list):
        if value and not _holds_objects(value):
            raise DataError(f"{where}: not a list of objects (found {type(value[0]).__name__}); {wanted}")
        return value
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a list of objects (found {type(value).__name__}); {wanted}")
    lists = {key: each for key, each in value.items() if isinstance(each, list)}
    # An empty list may be one of objects, but not where another has some.
    lists = {key: each for key, each in lists.items() if _holds_objects(each)} or {
        key: each for key, each in lists.items() if not each
    }
    if len(lists) == 1:
        return next(iter(lists.values()))
    named = f"lists of objects under {', '.join(lists)}" if lists else f"only {', '.join(value) or 'an empty object'}"
    raise DataError(f"{where}: holds {len(lists) or 'no'} list{'s' * (len(lists) != 1)} of objects (found {named}); "
                    f"{wanted}", LINES if not lists else "")  # fmt: skip


def _holds_objects(values: list[Any]) -> bool:
    return any(isinstance(each, dict) for each in values)
