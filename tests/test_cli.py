"""The `siri` command: exit codes, messages, and how little it imports."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from siri import cli, paths
from siri.engine.errors import UserError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[argparse.Namespace], int]], None]:
    """Makes `siri play` run the given function, with one option `--level`."""

    def install(run: Callable[[argparse.Namespace], int]) -> None:
        module = SimpleNamespace(add_arguments=lambda parser: parser.add_argument("--level", type=int), run=run)
        monkeypatch.setitem(sys.modules, "siri.play", module)

    return install


def test_arguments_after_the_command_are_the_commands_own(command) -> None:
    command(lambda args: args.level)
    assert cli.main(["play", "--level", "7"]) == 7


def test_a_user_error_is_one_line_and_exit_code_2(command, capsys: pytest.CaptureFixture[str]) -> None:
    def run(args: argparse.Namespace) -> int:
        raise UserError("level: 3 is above 2; choose 1 or 2")

    command(run)
    assert cli.main(["play"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "siri play: level: 3 is above 2; choose 1 or 2\n"
    assert captured.out == ""


def test_our_own_bugs_keep_their_traceback(command) -> None:
    def run(args: argparse.Namespace) -> int:
        raise ValueError("a bug")

    command(run)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["play"])


def test_ctrl_c_is_exit_code_130(command) -> None:
    def run(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    command(run)
    assert cli.main(["play"]) == 130


@pytest.mark.parametrize("arguments", [[], ["paly"], ["play", "--level", "high"], ["play", "--unknown"]])
def test_a_wrong_command_line_is_exit_code_2(command, arguments: list[str]) -> None:
    command(lambda args: 0)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(cli.COMMANDS, "play", ("not_installed_here", "play"))
    assert cli.main(["play"]) == 2
    assert "package not_installed_here is not installed" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'yaml', 'numpy', 'rich'} & set(sys.modules)"
    script = f"import atexit, sys; from siri.cli import main; atexit.register(lambda: print({heavy})); main(['--help'])"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "doctor" in shown
    assert shown.endswith("set()\n")


def test_a_shipped_configuration_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped, elsewhere = tmp_path / "shipped", tmp_path / "elsewhere"
    shipped.mkdir()
    elsewhere.mkdir()
    (shipped / "small.yaml").touch()
    (elsewhere / "own.yaml").touch()
    monkeypatch.setattr(paths, "CONFIGS", shipped)
    monkeypatch.chdir(elsewhere)
    assert paths.find_config("small") == paths.find_config("configs/small.yaml") == shipped / "small.yaml"
    assert paths.find_config("own.yaml") == Path("own.yaml")
    with pytest.raises(UserError, match=r"--config other/small.yaml: no such file.*: small$"):
        paths.find_config("other/small.yaml")


def test_the_folder_of_shipped_configurations_exists() -> None:
    assert paths.CONFIGS.is_dir()
