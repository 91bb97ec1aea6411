"""The other end of ``apart``: a process that imports transformers, builds one model on the meta device, and ends.

It reads one JSON object, writes one, and is held to so much memory, and from then on to so much time, that no config
can keep the machine busy.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import time
from typing import Any

from peftctl.errors import PeftctlError, UsageError
from peftctl.quiet import quiet_libraries

SECONDS = 10  # of a processor, once everything is imported: transformers' largest, of 4,300 modules, takes two
SECONDS_BY_PEFT = 600
MEMORY = 3_000_000_000  # bytes beside what is mapped from files


def main() -> None:
    """``python -m peftctl.inspection.child [lean]``."""
    answer, sys.stdout = os.dup(1), sys.stderr  # what a library prints is no answer
    os.dup2(2, 1)
    quiet_libraries()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # being stopped is no crash to be kept
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, resource.RLIM_INFINITY))
    lean = "lean" in sys.argv[1:]
    _import(lean=lean)
    asked = json.load(sys.stdin)
    most = int(time.process_time()) + (SECONDS_BY_PEFT if asked["by_peft"] else SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))
    try:
        said: dict[str, Any] = {"architecture": answer_to(asked)}
    except PeftctlError as error:
        said = {"refused": [type(error).__name__, error.message, error.hint]}
    except MemoryError:
        said = {"refused": ["UsageError", f"the model of this config takes more than {MEMORY / 1e9:g} GB to build", ""]}
    except ImportError as error:
        if lean:  # it may be here, and have been left out
            raise
        said = {"refused": ["MachineError", f"building this model needs a package: {first_line(error)}", ""]}
    with os.fdopen(answer, "w", encoding="utf-8") as out:
        json.dump(said, out)
    os._exit(0)  # taking torch apart again takes a tenth of a second


def _import(*, lean: bool) -> None:
    """What every question needs, while the other end is still reading files."""
    from peftctl.inspection.lean import import_lean

    if lean:
        import_lean()
    import transformers.models.auto.modeling_auto  # noqa: F401
    from transformers import modeling_utils  # noqa: F401

    from peftctl.inspection import architecture, blueprint  # noqa: F401


def answer_to(asked: dict[str, Any]) -> dict[str, Any]:
    """The facts of the config asked for. Raises UsageError where it cannot be built."""
    from peftctl.inspection.architecture import architecture
    from peftctl.inspection.blueprint import build, said
    from peftctl.inspection.lean import add_rules

    settings = asked["settings"] or _of_gguf(asked["gguf"], asked["vocabulary"])
    try:
        try:
            built = build(settings)
        except (UsageError, NotImplementedError):
            if not add_rules():  # it may be for want of them
                raise
            built = build(settings)
    except NotImplementedError as error:
        raise UsageError(f"this model cannot be built without its weights: {said(error)}") from error
    facts = architecture(
        built,
        with_tree=asked["tree"],
        pattern=asked["pattern"],
        by_peft=asked["by_peft"],
        stored=asked.get("stored"),
    )
    return dataclasses.asdict(facts)


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _of_gguf(folder: str, vocabulary: int) -> dict[str, Any]:
    """The config that transformers makes of the settings of the one GGUF file in ``folder``."""
    from transformers import PreTrainedConfig

    from peftctl.inspection.blueprint import said

    try:
        settings, _ = PreTrainedConfig.get_config_dict(folder, gguf_file=os.listdir(folder)[0])
    except MemoryError:
        raise
    except Exception as error:  # the reader checks little
        raise UsageError(f"transformers builds no model of this GGUF file: {said(error)}") from error
    return {"vocab_size": vocabulary, **settings} if vocabulary else settings


if __name__ == "__main__":
    main()
