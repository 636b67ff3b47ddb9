"""Checkpoints: a folder appears whole or not at all, and a damaged one is recognised.

    runs/<name>/checkpoints/
        step-20/   policy/                 a directory that transformers and vLLM load
                   optimizer.safetensors   whole optimiser state, whatever the number of ranks
                   state.json              the caller's state, and the random state of every rank
                   manifest.json           size and sha256 of every file above
        latest, best                       links for people and tools; resuming does not depend on them

A checkpoint is written into a hidden sibling, synced to disk and renamed: the rename is the commit. So the newest
`step-N` is the newest whole one, and deleting it resumes from the one before.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from siri.engine import random_state
from siri.engine.distributed import World, all_gather_object
from siri.engine.errors import UserError
from siri.engine.files import sync_directory, user_error_on_write
from siri.engine.processes import signals_deferred
from siri.engine.random_state import RandomState

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    step: int
    """Iterations done: the run goes on with iteration `step` (0-based)."""
    path: Path
    state: Mapping[str, Any]
    """The caller's state as JSON gives it back: tuples are lists, keys are text."""
    random_states: tuple[RandomState, ...]
    """Of every rank that wrote it."""

    @property
    def policy(self) -> Path:
        """Directory with weights, configuration and tokenizer."""
        return self.path / "policy"

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """Whole optimiser state by name, on CPU."""
        return load_file(self.path / "optimizer.safetensors")

    def restore_random_state(self, world: World) -> bool:
        """Sets the generators as this rank's were. A rank that was not there before keeps its own; then False."""
        if world.rank >= len(self.random_states):
            return False
        random_state.restore(self.random_states[world.rank])
        return True


def save_checkpoint(
    run_dir: Path,
    step: int,
    *,
    world: World,
    save_policy: Callable[[Path], None],
    optimizer_state: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    keep_last: int,
    score: float | None = None,
) -> None:
    """Commits `step-<step>`, then removes what is neither among the `keep_last` newest nor the best.

    Every rank calls it and contributes its random state; rank 0 writes: `save_policy(directory)`, its
    `optimizer_state`, its JSON-able `state`. The best is the newest with the highest `score`; None and NaN never are.
    Stop signals wait for the end. Raises UserError on every rank if the disk is full or not writable: older checkpoints
    are then intact and nothing of the new one is left.
    """
    random_states = all_gather_object(world, random_state.capture())
    problem = None
    if world.is_main:
        content = {"state": state, "random_states": random_states}
        with signals_deferred():
            try:
                with user_error_on_write(run_dir / "checkpoints" / f"step-{step}"):
                    _commit(run_dir / "checkpoints", step, save_policy, optimizer_state, content, score)
                    _prune(run_dir / "checkpoints", keep_last)
            except UserError as error:
                problem = str(error)
    problem = all_gather_object(world, problem)[0]
    if problem is not None:
        raise UserError(problem)


def load_latest(run_dir: Path, world: World) -> Checkpoint | None:
    """The newest checkpoint of a run, checked by rank 0 against its manifest; None if there is none.

    Raises UserError on every rank if it is damaged, naming the file and what to do.
    """
    folders = checkpoint_folders(run_dir)
    problem = None
    if folders and world.is_main:
        try:
            _verify(folders[-1])
        except UserError as error:
            problem = str(error)
    problem = all_gather_object(world, problem)[0]
    if problem is not None:
        raise UserError(problem)
    return _read(folders[-1]) if folders else None


def load_checkpoint(path: Path) -> Checkpoint:
    """One checkpoint, e.g. `checkpoints/best`, checked against its manifest. Raises UserError if damaged or not one."""
    path = path.resolve()
    if not (path / "manifest.json").exists() and not re.fullmatch(r"step-\d+", path.name):
        raise UserError(f"checkpoint {path}: there is none; give a folder like runs/NAME/checkpoints/step-N")
    _verify(path)
    return _read(path)


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """The `step-N` folders of a run, oldest first."""
    folder = run_dir / "checkpoints"
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    steps = sorted(int(name.removeprefix("step-")) for name in names if re.fullmatch(r"step-\d+", name))
    return [folder / f"step-{step}" for step in steps]


def _commit(
    folder: Path,
    step: int,
    save_policy: Callable[[Path], None],
    optimizer_state: Mapping[str, torch.Tensor],
    content: Mapping[str, Any],
    score: float | None,
) -> None:
    target = folder / f"step-{step}"
    assert not target.exists(), f"{target} exists: a step is saved once"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*-step-*"):
        shutil.rmtree(leftover)
    scratch = folder / f".writing-step-{step}"
    try:
        (scratch / "policy").mkdir(parents=True)
        save_policy(scratch / "policy")
        save_file(dict(optimizer_state), scratch / "optimizer.safetensors")
        (scratch / "state.json").write_text(json.dumps(content), encoding="utf-8")
        best_by = float(score) if score is not None and math.isfinite(score) else None
        manifest = {"format": FORMAT, "step": step, "score": best_by, "files": _fingerprints(scratch)}
        (scratch / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _sync_tree(scratch)
        os.rename(scratch, target)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        # safetensors and tokenizers report the system's errors in their message only.
        if code := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        raise
    sync_directory(folder)
    _link(folder / "latest", target.name)


def _prune(folder: Path, keep_last: int) -> None:
    folders = checkpoint_folders(folder.parent)
    scores = [(score, index) for index, path in enumerate(folders) if (score := _score(path)) is not None]
    keep = {*folders[-keep_last:]}
    if scores:
        best = folders[max(scores)[1]]
        keep.add(best)
        _link(folder / "best", best.name)
    for path in folders:
        if path not in keep:
            # Renamed first: a folder called step-N is never half deleted.
            path.rename(folder / f".pruned-{path.name}")
            shutil.rmtree(folder / f".pruned-{path.name}")


def _link(link: Path, target: str) -> None:
    if link.is_symlink() and os.readlink(link) == target:
        return
    scratch = link.with_name(f".{link.name}.writing")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(target)
    os.replace(scratch, link)


def _fingerprints(folder: Path) -> dict[str, dict[str, int | str]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in paths
    }


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        else:
            sync_directory(path)
    sync_directory(folder)


def _score(path: Path) -> float | None:
    try:
        return _manifest(path)["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged: for `load_latest` to report


def _verify(path: Path) -> None:
    """Raises UserError naming the first file that is not what the manifest says."""
    try:
        manifest = _manifest(path)
        written = [(name, file["bytes"], file["sha256"]) for name, file in manifest["files"].items()]
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"manifest.json cannot be read ({error})") from None
    if version != FORMAT:
        raise UserError(
            f"checkpoint {path}: its format is {version}, this version of siri reads {FORMAT}; "
            "go on with the version that wrote it, or start a new run under another name"
        )
    for name, size, digest in written:
        try:
            actual_size, actual_digest = (path / name).stat().st_size, _sha256(path / name)
        except OSError as error:
            raise _damaged(path, f"{name}: {error.strerror}") from None
        if actual_size != size:
            raise _damaged(path, f"{name}: {actual_size} bytes on disk, {size} were written")
        if actual_digest != digest:
            raise _damaged(path, f"{name}: the content is not what was written (sha256 differs)")


def _damaged(path: Path, what: str) -> UserError:
    folders = checkpoint_folders(path.parent.parent)
    older = folders[: folders.index(path)] if path in folders else []
    then = f"resume from {older[-1].name}" if older else "start the run anew"
    return UserError(f"checkpoint {path} is damaged: {what}; delete that folder to {then}")


def _manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_text(encoding="utf-8"))


def _read(path: Path) -> Checkpoint:
    content = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(
        step=_manifest(path)["step"],
        path=path,
        state=content["state"],
        random_states=tuple(content["random_states"]),
    )
