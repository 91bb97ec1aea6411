"""Files by path or URL, opened or copied. What stands in them is for ``readers``."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from peftctl.atomic import lock, sync
from peftctl.cache import cache_home
from peftctl.errors import DataError, MachineError, PeftctlError
from peftctl.nearest import nearest

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
USUAL = ("file", "hf", "https", "s3", "gs", "az", "sftp")
# What a file system tells of a file that does not change with its contents, or changes without them: an HTTP redirect
# is signed anew each time, and SFTP's ``time`` is that of the last reading.
NO_VERSION = {"name", "type", "url", "mimetype", "partial", "size", "time", "last_accessed_on"}
CONNECTS_IN, ANSWERS_IN = 20.0, 60.0  # seconds that an HTTP server has
UNREACHABLE = "see that the address is right and can be reached"
LONGEST_NAME = 100  # characters; a file system takes 255 bytes, and what stands before the name needs some


def is_url(where: str) -> bool:
    """Whether ``where`` begins with ``scheme://``. Everything else is a local path."""
    return SCHEME.match(where) is not None


def open_binary(where: str) -> BinaryIO:
    """The bytes of a local file or a URL. Of a URL it fetches what is read, as far as the protocol can.

    Raises DataError for a file that is not there, is a folder or may not be read, and for an unknown protocol;
    MachineError for a package that is missing and for the network, the latter also from the file's ``read``.
    """
    if not is_url(where):
        return _open_local(where, Path(where))
    fs, path = _resolve(where)
    if _is_local(fs):
        return _open_local(where, Path(path))
    with _explained(where, "cannot be read"):
        try:
            file = fs.open(path, "rb")
        except FileNotFoundError as error:  # some say so of a folder too, and some of a network that fails
            if _cause(error) is None and fs.isdir(path):
                raise IsADirectoryError from None
            raise
        return cast(BinaryIO, io.BufferedReader(_Remote(where, file), 1 << 20))


def local(where: str) -> Path:
    """The absolute path of a local file with the contents of ``where``.

    A local path comes back as it is, unread. A URL is copied into the cache once for each version that its file
    system tells apart (modification time, ETag, checksum), or every time where it tells none. The copy's name ends
    with the original's. Older copies stay, since another process may be reading them. Raises as ``open_binary``.
    """
    if not is_url(where):
        return Path(where).absolute()
    fs, path = _resolve(where)
    if _is_local(fs):
        return Path(path)
    folder = cache_home() / "files"
    with suppress(PermissionError):
        folder.mkdir(exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise MachineError(f"{folder} cannot be written to: Permission denied", "set PEFTCTL_CACHE to another folder")
    with _explained(where, f"cannot be copied into {folder}"):
        info, version = _look(fs, path)
        if info.get("type") == "directory":
            raise IsADirectoryError
        key = hashlib.sha256(f"{where}\n{version}".encode()).hexdigest()[:32]
        target = folder / f"{key}-{file_name(where)[-LONGEST_NAME:]}"
        # fsspec's own filecache writes to the final name, so that a second process could read half a file.
        with lock(folder / f".{key}.lock", f"{where}: is being copied by another process", wait=True):
            if not (version and target.exists()):
                _copy(where, fs, path, target, info, version)
    return target


def file_name(where: str) -> str:
    """The last part of a path or URL; of a URL without what follows ``?`` or ``#``, of a chain (``zip://a::s3://b``)
    that of its first link.
    """
    if is_url(where):
        where = re.split(r"::|[?#]", where)[0]
    return where.rstrip("/").rpartition("/")[2]


class _Remote(io.RawIOBase):
    """A remote file whose failures are MachineErrors: each file system has exceptions of its own."""

    def __init__(self, where: str, file: Any) -> None:
        self._where, self._file = where, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with _explained(self._where, "cannot be read on"):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _open_local(where: str, path: Path) -> BinaryIO:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # reading it may never end, nor begin
            raise DataError(f"{where}: is a device or a pipe, not a file of rows")
        return path.open("rb")
    except IsADirectoryError:
        raise DataError(f"{where}: is a folder, not a file of rows") from None
    except FileNotFoundError as error:
        near = ""
        with suppress(OSError):
            near = nearest(path.name, sorted(p.name for p in path.parent.iterdir()))
        hint = f"did you mean {path.with_name(near)}?" if near else ""
        raise DataError(f"{where}: cannot be read: {error.strerror}", hint) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise DataError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _resolve(where: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it."""
    import fsspec

    known = {*fsspec.available_protocols(), *fsspec.registry}  # those it comes with and those added to it
    for link in where.split("::"):
        match = SCHEME.match(link)
        scheme = match[1] if match else link
        if scheme not in known:
            near = nearest(scheme, USUAL) or nearest(scheme, sorted(known))
            usual = ", ".join(USUAL)
            problem = f"{where}: unknown protocol (found {scheme}); allowed: {usual} and others that fsspec knows"
            raise DataError(problem + (f"; did you mean {near}?" if near else ""))
    try:
        with _explained(where, "cannot be read"):
            fs, path = fsspec.url_to_fs(where, **_options(where))
    except ImportError as error:
        # The cause says which package it was; fsspec's own message is free text.
        missing = getattr(error.__cause__ or error, "name", None)
        package = missing.partition(".")[0].replace("_", "-") if missing else ""
        hint = f"pip install {package}" if package else str(error)
        raise MachineError(f"{where}: needs a package that is not installed", hint) from None
    return fs, path


def _options(where: str) -> dict[str, Any]:
    """For HTTP, how long to wait for a server: by itself fsspec waits for ever."""
    if not re.match(r"https?://", where):
        return {}
    from aiohttp import ClientTimeout

    return {"client_kwargs": {"timeout": ClientTimeout(sock_connect=CONNECTS_IN, sock_read=ANSWERS_IN)}}


def _cause(error: FileNotFoundError) -> BaseException | None:
    """What a file system that calls every failure a missing file met in truth; None where the file is missing."""
    cause = error.__cause__
    return None if cause is None or isinstance(cause, FileNotFoundError) else cause


def _is_local(fs: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)


def _look(fs: Any, path: str) -> tuple[dict[str, Any], str]:
    """What the file system tells of a file now, and that as one word that changes with the file; "" if none does.

    Not fsspec's ``ukey``: over HTTP it takes every file to stay as it is.
    """
    fs.invalidate_cache()
    info = fs.info(path)
    telling = {key: value for key, value in info.items() if key not in NO_VERSION and value is not None}
    return info, repr(sorted({**telling, "size": info.get("size")}.items())) if telling else ""


def _copy(where: str, fs: Any, path: str, target: Path, info: dict[str, Any], version: str) -> None:
    handle, aside = tempfile.mkstemp(prefix=".", suffix=".partial", dir=target.parent)
    os.close(handle)
    try:
        fs.get_file(path, aside)
        if _look(fs, path)[1] != version:
            raise MachineError(f"{where}: changed while it was copied", "run again when it is written no more")
        size, got = info.get("size"), os.path.getsize(aside)
        if isinstance(size, int) and got != size:
            raise MachineError(f"{where}: came cut short ({got} of {size} bytes)", "run again")
        sync(Path(aside))
        os.replace(aside, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(aside)
        raise
    sync(target.parent)


@contextmanager
def _explained(where: str, what: str) -> Iterator[None]:
    """A remote file system's refusal as an error of ours. Each has its own exceptions, so all are caught."""
    try:
        yield
    except (PeftctlError, ImportError):
        raise
    except FileNotFoundError as error:
        if cause := _cause(error):
            reason = (str(cause).splitlines() or [""])[0] or type(cause).__name__
            raise MachineError(f"{where}: {what}: {reason}", UNREACHABLE) from None
        raise DataError(f"{where}: cannot be read: No such file or directory") from None
    except IsADirectoryError:
        raise DataError(f"{where}: is a folder, not a file of rows") from None
    except PermissionError as error:
        raise DataError(f"{where}: {what}: {error.strerror or error or 'no rights'}") from None
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise MachineError(f"{where}: {what}: {reason}", UNREACHABLE) from None
