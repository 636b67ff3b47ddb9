"""`siri warmstart`: make a tiny policy from nothing, by behaviour cloning on procedural train games or invented shops.

Writes a directory that transformers and vLLM load, with `warmstart.jsonl` (the log) and `warmstart.json` (the command's
settings, the measured speed and the versions) beside the weights.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from siri import household_plays, shop_plays
from siri.cloning import Example, blocks, clone
from siri.demonstrations import OBSERVATION_WEIGHT, WASTE, Play, Sizes, copy_example, play_example, skill_example
from siri.engine.errors import UserError
from siri.engine.files import user_error_on_write
from siri.engine.policy import load_policy
from siri.envs.household.brief import brief as household_brief
from siri.envs.webshop.brief import UNCHANGED
from siri.envs.webshop.brief import brief as shop_brief
from siri.prompts import Renderer
from siri.run_dir import git_commit
from siri.tiny import new_model, train_tokenizer

SMALLEST_VOCABULARY = 260
"""256 bytes and the four special tokens."""
CORPUS_EPISODES = 600
"""Episodes the tokenizer is trained on; with these every frequent word of the games is one token."""
COPY_SHARE, SKILL_SHARE = 0.05, 0.05
"""Shares of drills and of skill writing afterwards; the rest is play."""


Environment = Literal["household", "webshop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """What there is to imitate in an environment."""

    play: Callable[..., Play]
    """(index, size, max_turns, waste) -> an expert's episode."""
    solved: Callable[..., Play]
    """(index, size, waste) -> a solved one, to write a skill from."""
    skill_of: Callable[[Play], tuple[str, str]]
    """What a solved one teaches."""
    corpus_text: Callable[[Play], list[str]]
    """The texts of an episode, for the tokenizer."""
    shorten: Callable[[str], str]
    """An observation in its short form."""
    unchanged: tuple[str, str] | None = None
    """What stands for an observation like the one before: of an action accepted, and refused."""
    observation_weight: float
    """Loss weight of observation tokens."""


LESSONS: dict[Environment, Lessons] = {
    "household": Lessons(
        play=household_plays.play,
        solved=household_plays.solved,
        skill_of=household_plays.skill_of,
        corpus_text=household_plays.corpus_text,
        shorten=household_brief,
        observation_weight=OBSERVATION_WEIGHT,
    ),
    "webshop": Lessons(
        play=shop_plays.play,
        solved=shop_plays.solved,
        skill_of=shop_plays.skill_of,
        corpus_text=shop_plays.corpus_text,
        shorten=shop_brief,
        unchanged=UNCHANGED,
        # Pages have nine tokens to one of an action: at 0.2 they made 85% of the loss after 800 steps.
        observation_weight=0.05,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmstartConfig:
    """Settings of a warm start. Those of the shipped policies, and the commits they were used at, are in
    `siri/policies/*/warmstart.json`."""

    env: Environment = "household"
    steps: int = 2400
    seed: int = 0
    size: Sizes = "small"
    max_turns: int = 32
    waste: float = WASTE
    """Share of turns that the demonstrators waste, or chance that they decide badly, between 0 and 1."""
    drills: float = 0.05
    """Share of the steps, at the start, that are copying drills only; none where an earlier policy goes on."""
    vocab_size: int = 1024
    hidden: int = 192
    layers: int = 4
    heads: int = 3
    intermediate: int = 512
    lr: float = 4e-3
    rows: int = 8
    row_tokens: int = 512
    start: str = ""
    """A directory with a policy made earlier, to go on with: its tokenizer and its sizes stay."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="directory to write the policy to")
    for name, default in asdict(WarmstartConfig()).items():
        told = "policy to go on from, with its tokenizer and sizes [none]" if name == "start" else f"[{default}]"
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=told)
    parser.add_argument("--compile", action="store_true", help="torch.compile the step: a fifth faster after a minute")


def run(args: argparse.Namespace) -> int:
    config = WarmstartConfig(**{name: getattr(args, name) for name in asdict(WarmstartConfig())})
    check(config)
    if args.out.exists() and not (args.out.is_dir() and not any(args.out.iterdir())):
        raise UserError(f"--out: {args.out} is not an empty directory; give a new one, or delete it first")
    warmstart(config, args.out, compile_model=args.compile)
    return 0


def check(config: WarmstartConfig) -> None:
    """Raises UserError for settings that make no model."""
    if config.env not in get_args(Environment):
        raise UserError(f"--env: {config.env!r} is not an environment; use {' or '.join(get_args(Environment))}")
    if config.size not in get_args(Sizes):
        raise UserError(f"--size: {config.size!r} is not a size of games or shops; use {' or '.join(get_args(Sizes))}")
    for name, value in asdict(config).items():
        least = SMALLEST_VOCABULARY if name == "vocab_size" else 0 if name == "seed" else 1
        if isinstance(value, int) and value < least:
            raise UserError(f"--{name.replace('_', '-')}: {value} is too small; give {least} or more")
    if not 0 <= config.waste < 1:
        raise UserError(f"--waste: {config.waste} is no share of turns; give 0 or more, less than 1, such as {WASTE}")
    if not 0 <= config.drills < 1:
        raise UserError(f"--drills: {config.drills} is no share of steps; give 0 or more, less than 1, such as 0.05")
    if not 0 < config.lr < math.inf:
        raise UserError(f"--lr: {config.lr} is not a learning rate; give a number above 0, such as 0.004")
    if config.hidden % (2 * config.heads):
        raise UserError(
            f"--hidden: {config.hidden} does not divide into {config.heads} heads of even width; "
            f"give a multiple of {2 * config.heads}"
        )


def warmstart(config: WarmstartConfig, out: Path, *, compile_model: bool = False) -> PreTrainedModel:
    """Train a tokenizer and a model by `config` and write both to `out`; returns the model."""
    with user_error_on_write(out):
        out.mkdir(parents=True, exist_ok=True)
    if config.start:
        earlier = load_policy(config.start, dtype=torch.float32, device=torch.device("cpu"))
        model: PreTrainedModel = earlier.model
        tokenizer = earlier.tokenizer
    else:
        tokenizer = make_tokenizer(config)
        model = new_model(
            tokenizer,
            hidden=config.hidden,
            layers=config.layers,
            heads=config.heads,
            intermediate=config.intermediate,
            seed=config.seed,
        )
    lessons = LESSONS[config.env]
    renderer = Renderer(tokenizer, style="compact", shorten=lessons.shorten, unchanged=lessons.unchanged)
    started = time.perf_counter()
    with (out / "warmstart.jsonl").open("w") as log:

        def report(step: int, loss: float, speed: float) -> None:
            seconds = time.perf_counter() - started
            line = {"step": step, "loss": loss, "tokens_per_second": speed, "seconds": seconds}
            log.write(json.dumps({name: round(value, 4) for name, value in line.items()}) + "\n")
            log.flush()
            left = seconds / step * (config.steps - step)
            sys.stderr.write(f"\rwarm start {step}/{config.steps}  loss {loss:.3f}  {left / 60:.0f} min left  ")
            sys.stderr.flush()

        stream = blocks(examples(config, renderer), rows=config.rows, length=config.row_tokens)
        clone(model, stream, steps=config.steps, lr=config.lr, compile_model=compile_model, report=report)
    sys.stderr.write("\n")
    # Half precision halves the shipped file; the run loads it in float32 again.
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    earlier_command = Path(config.start) / "warmstart.json"
    made = {
        "start": json.loads(earlier_command.read_text()) if config.start and earlier_command.exists() else None,
        "commit": git_commit(),
        "command": "siri warmstart "
        + " ".join(f"--{name.replace('_', '-')} {value}" for name, value in asdict(config).items() if value != "")
        + (" --compile" if compile_model else ""),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - started),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (out / "warmstart.json").write_text(json.dumps(made, indent=2) + "\n")
    return model


def make_tokenizer(config: WarmstartConfig) -> PreTrainedTokenizerFast:
    lessons = LESSONS[config.env]
    one = partial(lessons.play, size=config.size, max_turns=config.max_turns, waste=config.waste)
    episodes = (one(-1 - i) for i in range(CORPUS_EPISODES))
    return train_tokenizer((text for p in episodes for text in lessons.corpus_text(p)), vocab_size=config.vocab_size)


def examples(config: WarmstartConfig, renderer: Renderer) -> Iterator[Example]:
    """An endless stream: drills first, then mostly play. A function of the seed alone."""
    lessons = LESSONS[config.env]
    rng = np.random.default_rng(config.seed)
    texts = [renderer.decode([i]) for i in range(len(renderer.tokenizer))]
    words = [i for i, text in enumerate(texts) if len(text.strip()) > 1]
    # The smallest vocabularies hold bytes only; special tokens have no text.
    vocabulary = np.array(words or [i for i, text in enumerate(texts) if text], dtype=np.int32)
    drill_tokens = 0 if config.start else config.drills * config.steps * config.rows * config.row_tokens
    index, tokens = config.seed * 10**9, 0
    while True:
        index += 1
        kind = rng.random()
        if tokens < drill_tokens or kind < COPY_SHARE:
            example = copy_example(index, vocabulary, renderer)
        else:
            if kind < COPY_SHARE + SKILL_SHARE:
                played = lessons.solved(index, size=config.size, waste=config.waste)
                example = skill_example(played, lessons.skill_of(played), renderer)
            else:
                played = lessons.play(index, size=config.size, max_turns=config.max_turns, waste=config.waste)
                example = play_example(played, renderer, observation_weight=lessons.observation_weight)
        tokens += len(example.ids)
        yield example
