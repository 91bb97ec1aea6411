"""What a verb ends with: done, or what it raised as one clear message and the right exit code."""

from __future__ import annotations

import errno
import functools
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from peftctl.errors import EXIT_BUG, EXIT_INTERRUPTED, MachineError, PeftctlError

Verb = TypeVar("Verb", bound=Callable[..., None])

# What the system says when disks, rights or the machine itself are at fault.
MACHINE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG,
    errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.ENODEV,
}  # fmt: skip


def outcomes(verb: Verb) -> Verb:
    """What a verb raises, as one clear message and the right exit code."""

    @functools.wraps(verb)
    def guarded(*args: Any, **kwargs: Any) -> None:
        from peftctl import console, quiet

        quiet.quiet_libraries()
        show = console.show_error_json if kwargs.get("as_json") else console.show_error
        try:
            verb(*args, **kwargs)
        except PeftctlError as error:
            show(error)
            sys.exit(error.exit_code)
        except (KeyboardInterrupt, typer.Abort):
            console.note("interrupted")
            sys.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            console.silence()
            sys.exit(0)
        except Exception as error:
            if machine := _machine_fault(error):
                show(machine)
                sys.exit(machine.exit_code)
            from peftctl import crashlog

            log = crashlog.write(error)
            report = f"a report of it is in {log}" if log else f"no report of it could be written: {error}"
            console.note(f"error: a bug in peftctl: {type(error).__name__}; {report}")
            sys.exit(EXIT_BUG)

    return guarded  # type: ignore[return-value]


def _machine_fault(error: Exception) -> MachineError | None:
    """A fault of the machine that a library reported in its own way."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return MachineError("out of memory", "a smaller train.micro_batch_tokens or data.max_length needs less")
    if isinstance(error, OSError) and error.errno in MACHINE:
        return MachineError(f"{error.filename or 'a file'} cannot be read or written: {error.strerror}")
    # safetensors and shutil put the system's number into their text.
    told = re.search(r"(?:os error |Errno )(\d+)", str(error))
    if told and int(told[1]) in MACHINE:
        return MachineError(f"a file cannot be read or written: {os.strerror(int(told[1]))}")
    return None
