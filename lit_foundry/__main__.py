"""The command line's entry: answers at once what needs no torch, and tells mistakes plainly."""

import errno
import gc
import os
import sys
from importlib import import_module
from io import TextIOWrapper
from opcode import opmap
from pathlib import Path
from types import ModuleType

from lit_foundry import memory, usage

# Commands that are no Trainer method, by module.
OWN: dict[str, str] = {
    "benchmark": "lit_foundry.compress.benchmark",
    "compress": "lit_foundry.cli.compress_command",
    "embed": "lit_foundry.cli.embed_command",
    "evaluate": "lit_foundry.cli.evaluate_command",
    "export": "lit_foundry.export.command",
    "list": "lit_foundry.cli.listing",
    "report": "lit_foundry.report.command",
    "tokenizer": "lit_foundry.cli.tokenizer_command",
}
# Errors of files and disks that no code could help: who runs the command must.
OF_THE_DISK = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def main() -> None:
    """Run a command; of a mistake of the user, print the message and no traceback."""
    speak_unicode()
    try:
        run()
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        if os.environ.get("LIT_FOUNDRY_DEBUG") == "1" or not foreseen(error):
            raise
        print(f"error: {usage.printable(message(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        told = error.filename and error.errno in OF_THE_DISK
        if os.environ.get("LIT_FOUNDRY_DEBUG") == "1" or not told:
            raise
        print(f"error: {error.filename}: {error.strerror}.", file=sys.stderr)
        sys.exit(1)


def speak_unicode() -> None:
    """Write UTF-8 to pipes and files whatever the locale, and escapes to a lesser terminal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def foreseen(error: BaseException) -> bool:
    """Tell whether a ``raise`` of this package threw an exception, not something that it called.

    What C code throws, as ``int("x")`` does, has our frame as its last too: hence the opcode.
    """
    if type(error).__module__.startswith("lit_foundry."):
        return True  # loaders throw again what their workers caught
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    is_ours = Path(code.co_filename).is_relative_to(Path(__file__).parent)
    return is_ours and code.co_code[trace.tb_lasti] == opmap["RAISE_VARARGS"]


def message(error: BaseException) -> str:
    """Return what an exception says, without the traceback that loaders add to a worker's."""
    text = str(error)
    caught = text.startswith(f"Caught {type(error).__name__} in DataLoader worker")
    return text.rpartition(f"{type(error).__name__}: ")[2].strip() if caught else text


def run() -> None:
    """Answer what needs no torch at once; hand the rest on."""
    match sys.argv[1:]:
        case [] | ["-h" | "--help"]:
            print(usage.USAGE)
        case ["--version"]:
            print(import_module("lit_foundry").__version__)
        case [word, *_] if word not in usage.COMMANDS:
            raise usage.UsageError(usage.unknown_command(word))
        case [command, *args] if command != "list" and {"-h", "--help"} & set(args):
            print((usage.HELP | usage.OWN_HELP)[command])
        case [command, *args] if command in OWN:
            imported(OWN[command]).main(args)
        case _:
            imported("lit_foundry.cli.main").main()


def imported(module: str) -> ModuleType:
    """Import without collecting garbage, then spare what came with it all later collections.

    Torch and its like bring half a million objects: to search these for garbage over and over takes
    a fifth of the time to import them, and a third of a second now and then in a training step.
    """
    memory.keep()
    gc.disable()
    try:
        return import_module(module)
    finally:
        gc.freeze()
        gc.enable()


if __name__ == "__main__":
    main()
