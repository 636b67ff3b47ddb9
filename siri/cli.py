"""The `siri` command: finds the subcommand's module, and turns its errors into exit codes.

A subcommand is a module with `add_arguments(parser)` and `run(args) -> int`, or, where it reads its own words, with
`main(words, prog) -> int`. Only the module that was asked for is imported, so `siri --help` does not wait for torch.

Exit codes: what `run` returns; 2 for a UserError (one line on stderr) or a wrong command line; 130 after Ctrl-C.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from types import ModuleType

from siri.engine.errors import UserError

COMMANDS = {
    "train": ("siri.train", "train an agent; the same as `torchrun siri/train.py`"),
    "eval": ("siri.eval_command", "play every task of a split once, with the policy of a run or a shipped one"),
    "report": ("siri.report.command", "make the page report.html of a run, finished or not"),
    "skills": ("siri.show_skills", "print the skills of a run, and what each was worth"),
    "play": ("siri.play", "play a household game yourself, or shop for a goal"),
    "data": ("siri.data_command", "check official data in a local folder and index them, so that runs open them fast"),
    "warmstart": ("siri.warmstart", "make a tiny policy: behaviour cloning on an expert's play"),
    "doctor": ("siri.doctor", "say what works on this machine, what is missing, and the remedy"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `siri` with `argv` (default: the process's own arguments). Returns the exit code."""
    args = _top_parser().parse_args(argv)
    module_name, summary = COMMANDS[args.command]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see siri/train.py
    try:
        module = _import(module_name)
        if hasattr(module, "main"):
            return int(module.main(args.rest, f"siri {args.command}"))
        parser = argparse.ArgumentParser(prog=f"siri {args.command}", description=_sentence(summary))
        module.add_arguments(parser)
        return int(module.run(parser.parse_args(args.rest)))
    except UserError as error:
        print(f"siri {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"siri {args.command}: stopped", file=sys.stderr)
        return 130


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "siri":
            raise
        raise UserError(
            f"the package {error.name} is not installed in {sys.prefix}; "
            "`make setup` in the checkout installs all that is needed, `siri doctor` says what is missing"
        ) from error


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="siri",
        description="Training engine for LLM agents.",
        epilog="commands:\n" + "\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"siri {version('siri')}")
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="one of those below")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="its arguments; `siri command --help`")
    return parser


def _sentence(summary: str) -> str:
    return summary[0].upper() + summary[1:] + "."
