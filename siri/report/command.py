"""`siri report`: makes the page of a run, also while the run goes on."""

import argparse
from pathlib import Path

from rich.console import Console

from siri.engine.files import write_text_atomic
from siri.report.page import page
from siri.report.run_files import read_run


def write_report(run_dir: Path) -> Path:
    """Makes `report.html` of what the directory holds now; its path.

    Raises UserError if the directory is not that of a run, a file in it is damaged, or the page cannot be written.
    """
    path = run_dir / "report.html"
    write_text_atomic(path, page(read_run(run_dir)))
    return path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run directory, e.g. runs/default")


def run(args: argparse.Namespace) -> int:
    Console(highlight=False, markup=False, emoji=False, soft_wrap=True).print(str(write_report(args.run)))
    return 0
