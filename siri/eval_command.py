"""`siri eval`: the plain-prompt evaluation of a policy, and beside it, if asked for, one with its run's skill bank.

    --run DIR                            the policy of a run, at any of its checkpoints
    --config FILE [--a.b value ...]      the policy.model of a configuration as it is, with no run
    --env NAME [--a.b value ...]         the same, of the configuration that ships for an environment

The plain one is `siri.evaluate`, which cannot see a bank. What has the bank's help says so in every output.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from siri.config import RunConfig
from siri.engine.checkpoint import Checkpoint, checkpoint_folders, load_checkpoint, load_latest
from siri.engine.config import load_config
from siri.engine.dialogue import Dialogue
from siri.engine.distributed import World, init_world, shutdown
from siri.engine.errors import UserError
from siri.engine.files import strict_json
from siri.engine.rollout import Progress
from siri.evaluate import Evaluation, evaluate
from siri.guidance import bank_rules
from siri.paths import find_config
from siri.prompts import skill_text
from siri.session import Session, open_session
from siri.shipped import resolve
from siri.skills import SkillBank

CONFIG_OF = {"household": None, "webshop": "webshop_tiny"}
"""The configuration whose policy plays an environment out of the box; None: the defaults."""


def main(words: Sequence[str], prog: str) -> int:
    """Evaluate by command-line words. Returns 0; raises UserError for what cannot be evaluated."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} (--run DIR | --config FILE | --env NAME) [options] [--name.of.setting value ...]",
        description="Play every task of a split once, on the plain prompt.",
        epilog="Settings of a configuration (`siri train --help` lists them) can follow where there is no --run.",
        allow_abbrev=False,
    )
    add_arguments(parser)
    args, settings = parser.parse_known_args(words)
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit: {args.limit} tasks cannot be played; give 1 or more, or leave it out")
    config = config_of_run(args, settings) if args.run else config_without_run(args, settings)
    if args.env not in (None, config.environment.name):
        raise UserError(
            f"--env: {args.env}, but environment.name is {config.environment.name}; leave one of the two out"
        )
    split = args.split or config.eval.split
    world = init_world(config.device)
    try:
        checkpoint = find_checkpoint(args.run, args.checkpoint or "latest", world) if args.run else None
        bank = bank_in_use(checkpoint, config) if args.with_skills else None
        source = str(checkpoint.policy) if checkpoint else resolve(config.policy.model)
        with open_session(config, world, splits={"--split": split}, policy_source=source) as session:
            session.sampler.load_weights(session.policy.model.state_dict().items(), version=0)
            results = [play(session, config, world, split=split, limit=args.limit, bank=None)]
            if bank is not None:
                results.append(play(session, config, world, split=split, limit=args.limit, bank=bank))
    finally:
        shutdown()
    if world.is_main:
        print(report(results, bank, as_json=args.json))
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, metavar="DIR", help="run directory, e.g. runs/default")
    parser.add_argument("--config", metavar="FILE", help="configuration whose policy.model plays, without a run")
    parser.add_argument(
        "--env",
        choices=tuple(CONFIG_OF),
        help="environment: with --run, the one it has to be of; alone, the shipped policy plays it",
    )
    parser.add_argument(
        "--split", help="e.g. valid; official games: valid_seen; of a shop also test [eval.split of the configuration]"
    )
    parser.add_argument("--limit", type=int, help="only the first N tasks of the split")
    parser.add_argument("--checkpoint", help="of a run: latest, best, step-N, or initial [latest]")
    parser.add_argument(
        "--with-skills", action="store_true", help="also play with the run's skills in the prompts, to compare"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def config_of_run(args: argparse.Namespace, settings: Sequence[str]) -> RunConfig:
    """The settings a run was made with. Raises UserError where there is no run, or other settings are given."""
    if args.config or settings:
        told = f"--config {args.config}" if args.config else settings[0]
        raise UserError(f"{told}: a run is evaluated under its own settings; leave this out, or --run")
    if not (args.run / "config.yaml").exists():
        raise UserError(f"--run: {args.run} is not a run directory (no config.yaml in it); give one like runs/default")
    return load_config(RunConfig, str(args.run / "config.yaml"))


def config_without_run(args: argparse.Namespace, settings: Sequence[str]) -> RunConfig:
    """The settings of --config or --env. Raises UserError where both or neither is given, or what only a run has."""
    if args.checkpoint or args.with_skills:
        told = f"--checkpoint {args.checkpoint}" if args.checkpoint else "--with-skills"
        raise UserError(f"{told}: only a run has that; give --run DIR, or leave it out")
    if bool(args.config) == bool(args.env):
        told = "give only one of the two" if args.config else "give --run DIR, --config FILE or --env NAME"
        raise UserError(f"--config and --env: both say which policy plays in which environment; {told}")
    name = args.config or CONFIG_OF[args.env]
    return load_config(RunConfig, str(find_config(name)) if name else None, settings)


def report(results: list[Evaluation], bank: SkillBank | None, *, as_json: bool) -> str:
    """What is printed: the plain evaluation, followed by the one with the bank if there is one."""
    if bank is None:
        [plain] = results
        return strict_json(plain.as_dict(), indent=2) if as_json else str(plain)
    plain, helped = results
    number = len(bank.live)
    if as_json:
        both = {"plain": plain.as_dict(), "with_bank": helped.as_dict(), "skills": number}
        return strict_json(both, indent=2)
    title = f"with the skill bank ({number} skills): not a result of the plain policy"
    return f"{plain}\n\n{title}\n{helped}"


def play(
    session: Session, config: RunConfig, world: World, *, split: str, limit: int | None, bank: SkillBank | None
) -> Evaluation:
    """Evaluate the weights in the sampler under the settings of `config`; with the skills of `bank`, if it is given."""
    return evaluate(
        session.sampler,
        session.source,
        session.renderer,
        split=split,
        policy=config.policy,
        config=config.eval.model_copy(update={"limit": limit}),
        max_turns=config.environment.max_turns,
        max_concurrent=config.rollout.max_concurrent,
        seed=config.seed,
        policy_version=0,
        world=world,
        on_progress=_show if sys.stderr.isatty() and world.is_main else None,
        dialogues=None if bank is None else partial(_with_skills, session, config, bank),
    )


def _with_skills(session: Session, config: RunConfig, bank: SkillBank, task_id: str) -> Callable[[], Dialogue]:
    skills = bank.retrieve(session.source.task(task_id), k=config.skills.k, explore=0.0, seed=0)
    return partial(session.renderer.dialogue, [skill_text(skill.condition, skill.strategy) for skill in skills])


def bank_in_use(checkpoint: Checkpoint | None, config: RunConfig) -> SkillBank:
    """The skills of a checkpoint that proved themselves: candidates do not help at inference.

    In a run with `no_validation` no skill is ever judged, and candidates are what it uses. Raises UserError if there is
    none.
    """
    bank: dict[str, Any] = checkpoint.state["guidance"]["bank"] if checkpoint else {"version": 0, "skills": []}
    used = ("active", "candidate") if config.no_validation else ("active",)
    in_use = [skill for skill in bank["skills"] if skill["status"] in used]
    if not in_use:
        raise UserError(
            f"--with-skills: the bank of this checkpoint has no {' or '.join(used)} skill ({len(bank['skills'])} in "
            "all); evaluate a later one, of a run with algorithm: siri, or leave the option out"
        )
    return SkillBank.from_dict({"version": bank["version"], "skills": in_use}, bank_rules(config))


def find_checkpoint(run_dir: Path, name: str, world: World) -> Checkpoint | None:
    """The checkpoint that `--checkpoint` means; None for `initial`, the policy that the run began with."""
    if name == "initial":
        return None
    if name == "latest":
        found = load_latest(run_dir, world)
        if found is None:
            raise UserError(f"--run: {run_dir} holds no checkpoint yet; wait for one, or give --checkpoint initial")
        return found
    folder = run_dir / "checkpoints" / name
    if not folder.exists():
        names = ["initial", *(path.name for path in checkpoint_folders(run_dir))]
        raise UserError(f"--checkpoint: {run_dir} holds no {name!r}; it has {', '.join(names)}")
    return load_checkpoint(folder)


def _show(progress: Progress) -> None:
    sys.stderr.write(f"\r{progress.finished}/{progress.total} played, {progress.successes} solved ")
    if progress.finished == progress.total:
        sys.stderr.write("\n")
    sys.stderr.flush()
