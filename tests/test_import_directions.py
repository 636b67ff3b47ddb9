"""The shape of the code, read from its syntax trees: who imports whom, and the limits of size and style."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
FOLDERS = {"kernels": "siri.kernels", "engine": "siri.engine", "siri": "siri"}

VLLM_FILES = {"engine/rollout_vllm.py", "engine/weight_sharing.py"}
# Stdout has owners: the metrics of a run, and the commands a person types.
PRINTING_FILES = {
    "engine/metrics.py",
    *(f"siri/{name}.py" for name in ("cli", "doctor", "eval_command", "play", "warmstart")),
}
MAX_FILE, MAX_FUNCTION, MAX_KERNEL = 400, 60, 120


def sources() -> dict[str, Path]:
    """Module name -> file, of the package."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((REPO / folder).rglob("*.py")):
            parts = [*package.split("."), *path.relative_to(REPO / folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()
EVERY_FILE = sorted(
    {
        *SOURCES.values(),
        *(path for top in ("benchmarks", "tests", "requirements") for path in (REPO / top).rglob("*.py")),
    }
)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imported(module: str) -> set[str]:
    """Names of every module that `module` imports anywhere in its file; `from package import submodule` resolved."""
    found = set()
    package = module.split(".") if SOURCES[module].name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree(SOURCES[module])):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in SOURCES)
    return found


def reached(start: str) -> set[str]:
    """Modules of ours that importing `start` can load, directly or not, the packages around them included."""
    done, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name in SOURCES and name not in done:
            done.add(name)
            waiting += imported(name)
            waiting += [".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1)]
    return done


def inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def relative(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_the_walk_sees_the_package() -> None:
    """A test of nothing would pass for ever: the walk finds the three layers, and edges known to be there."""
    assert {"siri", "siri.engine", "siri.kernels"} <= set(SOURCES)
    assert "siri.engine.errors" in imported("siri.engine.policy")
    assert {"siri.engine.policy", "siri.engine", "siri"} <= reached("siri.engine.policy")


@pytest.mark.parametrize("module", [name for name in SOURCES if inside(name, "siri.kernels")])
def test_kernels_need_torch_and_triton_only(module: str) -> None:
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    assert not {
        name for name in imported(module) if name.split(".")[0] not in allowed and not inside(name, "siri.kernels")
    }


@pytest.mark.parametrize("module", [name for name in SOURCES if inside(name, "siri.engine")])
def test_the_engine_knows_nothing_of_skills_and_environments(module: str) -> None:
    allowed = ("siri.engine", "siri.kernels", "siri._native")
    assert not {name for name in imported(module) if inside(name, "siri") and not inside(name, *allowed)}


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_imports_tests_or_benchmarks(module: str) -> None:
    assert not {name for name in imported(module) if inside(name, "tests", "benchmarks", "conftest")}


@pytest.mark.parametrize("module", SOURCES)
def test_folders_are_imported_under_their_installed_names(module: str) -> None:
    """`import engine` or `import kernels` would load a second copy of our modules, or Hugging Face's package."""
    assert not {name for name in imported(module) if inside(name, "engine", "kernels")}


@pytest.mark.parametrize("module", SOURCES)
def test_vllm_is_imported_in_two_files_and_inside_functions(module: str) -> None:
    within = {
        node
        for function in functions(SOURCES[module])
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    for node in ast.walk(tree(SOURCES[module])):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
        if isinstance(node, ast.Import | ast.ImportFrom) and any(inside(name, "vllm") for name in names):
            assert relative(SOURCES[module]) in VLLM_FILES, f"line {node.lineno} imports vllm"
            assert node in within, f"line {node.lineno} imports vllm outside a function"


def test_evaluation_has_no_way_to_the_skill_bank() -> None:
    assert not reached("siri.evaluate") & {"siri.skills", "siri.mining", "siri.guidance", "siri.trials"}
    assert "siri.skills" in reached("siri.eval_command")  # the comparison is kept apart from it


def test_only_the_comparison_evaluates_with_other_prompts_than_the_plain_one() -> None:
    """An evaluation inside a run, or in a benchmark, has no way to show the policy a skill."""
    passing = {
        relative(path)
        for path in EVERY_FILE
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and "dialogues" in {keyword.arg for keyword in node.keywords}
    }
    assert passing == {"siri/eval_command.py"}
    for path in SOURCES.values():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "evaluate":
                assert None not in {keyword.arg for keyword in node.keywords}, "** could pass them unseen"


@pytest.mark.parametrize("path", EVERY_FILE, ids=relative)
def test_size(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE
    for function in functions(path):
        is_kernel = any("jit" in ast.unparse(decorator) for decorator in function.decorator_list)
        # What is written about it is free: a docstring that gives every shape must not cost a function its body.
        words = ast.get_docstring(function, clean=False) or ""
        lines = (function.end_lineno or 0) - function.lineno + 1 - (len(words.splitlines()) if words else 0)
        assert lines <= (MAX_KERNEL if is_kernel else MAX_FUNCTION), f"{function.name} has {lines} lines"


@pytest.mark.parametrize("path", sorted((REPO / "csrc").iterdir()), ids=relative)
def test_size_of_cpp(path: Path) -> None:
    assert path.suffix in (".h", ".cpp")
    lines = path.read_text().splitlines()
    assert len(lines) <= MAX_FILE
    assert max(map(len, lines)) <= 120


def test_the_extension_has_one_door() -> None:
    """Others import the checked functions of siri.engine.native."""
    assert {module for module in SOURCES if "siri._native" in imported(module)} == {"siri.engine.native"}


@cache
def taken_names() -> set[str]:
    """Top-level names of the standard library and of installed packages."""
    installed = {top for top, owners in packages_distributions().items() if owners != ["siri"]}
    # The folder of this name is installed as siri.kernels, and gives way to Hugging Face's package (test_imports.py).
    return (installed | sys.stdlib_module_names) - {"kernels"}


@pytest.mark.parametrize("path", SOURCES.values(), ids=relative)
def test_names_shadow_nothing(path: Path) -> None:
    """A script's own folder leads sys.path: there, a module named after another one would be taken for it."""
    name = path.parent.name if path.name == "__init__.py" else path.stem
    assert name not in taken_names()
    assert "util" not in name


@pytest.mark.parametrize("path", [p for p in SOURCES.values() if relative(p) not in PRINTING_FILES], ids=relative)
def test_prints_only_where_stdout_is_owned(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            to = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "file"]
            assert to == ["sys.stderr"], f"line {node.lineno} prints"


@pytest.mark.parametrize("path", EVERY_FILE, ids=relative)
def test_a_broad_except_says_why(path: Path) -> None:
    lines = path.read_text().splitlines()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "BaseException"
            if isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None:
                continue  # cleans up and lets the error go on
            if "BaseException" in caught or "Exception" in caught.strip("()").split(", "):
                assert "#" in lines[node.lineno - 1], f"line {node.lineno} catches {caught} without a reason beside it"
