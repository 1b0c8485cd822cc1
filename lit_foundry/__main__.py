"""Train and evaluate any task on any data.

usage: python -m lit_foundry {fit,validate,test,predict,list} [--config FILE ...] [--KEY VALUE]

  fit       train; --resume auto continues an interrupted run
  validate  score a checkpoint on the validation split: --ckpt_path FILE
  test      score a checkpoint on the test split: --ckpt_path FILE
  predict   label texts: --ckpt_path FILE --input TEXTS --output FILE
  list      tasks, data modules, backbones and shipped configs

``python -m lit_foundry fit --help`` lists the arguments of a command.
Exit codes: 0 done, 2 a mistake in what was given (LIT_FOUNDRY_DEBUG=1 shows where it was found),
143 terminated after saving, 1 any other failure.
"""

import os
import sys
from importlib import import_module
from opcode import opmap
from pathlib import Path

# Commands that are no Trainer method, by module.
COMMANDS: dict[str, str] = {"list": "lit_foundry.listing"}


def main() -> None:
    """Run a command; of a mistake of the user, print the message and no traceback."""
    try:
        run()
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        if os.environ.get("LIT_FOUNDRY_DEBUG") == "1" or not foreseen(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def foreseen(error: BaseException) -> bool:
    """Tell whether a ``raise`` of this package threw an exception, not something that it called.

    What C code throws, as ``int("x")`` does, has our frame as its last too: hence the opcode.
    """
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    is_ours = Path(code.co_filename).is_relative_to(Path(__file__).parent)
    return is_ours and code.co_code[trace.tb_lasti] == opmap["RAISE_VARARGS"]


def run() -> None:
    """Answer what needs no torch at once; hand the rest on."""
    match sys.argv[1:]:
        case [] | ["-h"] | ["--help"]:
            print(__doc__)
        case ["--version"]:
            print(import_module("lit_foundry").__version__)
        case [command, *args] if command in COMMANDS:
            import_module(COMMANDS[command]).main(args)
        case _:
            import_module("lit_foundry.cli").main()


if __name__ == "__main__":
    main()
