"""Evaluation: intervals by their definition, every task of a split once, the checkpoint that was asked for."""

import json
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import model_directory, tokenizer
from ranks import on_ranks
from safetensors.torch import load_file
from test_skills import bank_of
from test_skills import evaluate as judge

from siri import cli, train
from siri.config import EvalConfig, PolicyConfig, RunConfig
from siri.engine.checkpoint import Checkpoint
from siri.engine.distributed import World
from siri.engine.rollout_hf import HfSampler
from siri.engine.sampling import Completion, SampleRequest, check_version, request_seed
from siri.envs.household import HouseholdEnv
from siri.envs.household.brief import brief
from siri.envs.household.source import ProceduralGames
from siri.eval_command import bank_in_use
from siri.evaluate import EVAL_STEP, Evaluation, evaluate, wilson_interval
from siri.prompts import Renderer

NUM_VALID = 8
SMALL = {
    "iterations": 3,
    "rollout.sampler": "transformers",
    "rollout.num_tasks": 4,
    "rollout.group_size": 2,
    "environment.size": "small",
    "environment.max_turns": 2,
    "environment.num_train": 6,
    "environment.num_valid": NUM_VALID,
    "policy.max_prompt_tokens": 300,
    "policy.max_action_tokens": 5,
    "optim.max_batch_tokens": 512,
    "optim.lr": 1e-3,
    "loss.kl_coef": 0.01,
    "eval.every": 1,
    "checkpoint.every": 1,
    "checkpoint.keep_last": 3,
}
SOURCE = ProceduralGames(size="small", num_train=6, num_valid=NUM_VALID, seed=0)


@given(data=st.data(), trials=st.integers(1, 10**5), z=st.floats(0.1, 5))
def test_both_ends_are_where_the_observed_rate_is_z_standard_errors_away(data, trials, z):
    successes = data.draw(st.integers(0, trials))
    rate = successes / trials
    low, high = wilson_interval(successes, trials, z)
    assert 0 <= low <= rate + 1e-12
    assert rate - 1e-12 <= high <= 1
    for end in (low, high):  # squared: near 0 the root of a rounding error is no rounding error
        assert (rate - end) ** 2 == pytest.approx(z * z * end * (1 - end) / trials, rel=1e-6, abs=1e-14)
    # The two ends are the two solutions, not one of them twice: sum and product of the roots of that equation.
    share = z * z / trials
    assert low + high == pytest.approx((2 * rate + share) / (1 + share), abs=1e-9)
    assert low * high == pytest.approx(rate**2 / (1 + share), abs=1e-9)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 2, 0.0945, 0.9055), (0, 0, 0.0, 1.0)],
)
def test_intervals_of_the_textbooks(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_leaves_out_five_percent():
    z = NormalDist().inv_cdf(0.975)
    assert wilson_interval(3, 17) == pytest.approx(wilson_interval(3, 17, z), abs=1e-7)


SCORES = {"step-1": 0.5, "step-2": 0.25, "final": 0.25}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run of three iterations whose best checkpoint is not its last."""
    folder = tmp_path_factory.mktemp("runs")
    values = {"name": "run", "runs_dir": folder, "policy.model": model_directory(folder / "model", hidden=16, layers=1)}

    evaluate_now = train.evaluate_now

    def scored(run, name: str) -> float | None:
        evaluate_now(run, name)
        return SCORES.get(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate_now", scored)
        assert train.main([word for name, v in (values | SMALL).items() for word in (f"--{name}", str(v))]) == 0
    return folder / "run"


@pytest.fixture
def played(monkeypatch) -> Counter:
    """Counts the task ids for which an environment was made and reset."""
    found: Counter = Counter()
    make, reset = ProceduralGames.make, HouseholdEnv.reset
    monkeypatch.setattr(
        ProceduralGames, "make", lambda self, task_id: (found.update([task_id]), make(self, task_id))[1]
    )
    monkeypatch.setattr(HouseholdEnv, "reset", lambda self: (found.update(["resets"]), reset(self))[1])
    return found


def strict(text: str) -> dict:
    """NaN and Infinity, which Python alone writes, are no JSON."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))


def evaluated(run_dir: Path, words: str, capsys) -> dict:
    capsys.readouterr()
    assert cli.main(["eval", "--run", str(run_dir), "--json", *words.split()]) == 0
    return strict(capsys.readouterr().out)


@pytest.mark.parametrize("split", ["valid", "train"])
def test_each_task_of_the_split_is_played_once(run_dir, split, played, capsys):
    result = evaluated(run_dir, f"--split {split}", capsys)
    tasks = SOURCE.tasks(split)
    assert played == Counter([*tasks, *["resets"] * len(tasks)])
    assert result["split"] == split
    assert result["split_hash"] == SOURCE.split_hash(split)
    assert result["episodes"] == len(tasks)
    assert result["errors"] == 0
    types = Counter(SOURCE.task_type(task) for task in tasks)
    assert {name: rate["episodes"] for name, rate in result["by_type"].items()} == types
    for rate in (result, *result["by_type"].values()):
        successes = round(rate["success_rate"] * rate["episodes"])
        assert (rate["low"], rate["high"]) == wilson_interval(successes, rate["episodes"])


def test_splits_have_different_hashes():
    assert SOURCE.split_hash("valid") != SOURCE.split_hash("train")


def test_a_limit_plays_the_first_tasks(run_dir, played, capsys):
    result = evaluated(run_dir, "--split valid --limit 3", capsys)
    assert played == Counter([*SOURCE.tasks("valid")[:3], *["resets"] * 3])
    assert result["episodes"] == 3
    assert result["split_hash"] == SOURCE.split_hash("valid", 3) != SOURCE.split_hash("valid")
    assert SOURCE.split_hash("valid", NUM_VALID) == SOURCE.split_hash("valid")
    assert sum(rate["episodes"] for rate in result["by_type"].values()) == 3


def test_without_json_people_get_a_table_of_the_same(run_dir, capsys):
    assert cli.main(["eval", "--run", str(run_dir), "--split", "valid"]) == 0
    head, titles, overall, *types = capsys.readouterr().out.splitlines()
    assert head.startswith(f"plain prompt, split valid ({SOURCE.split_hash('valid')[:12]}), ")
    assert titles.split() == ["success", "95%", "interval"]
    low, high = wilson_interval(0, NUM_VALID)
    assert overall.split() == ["all", "0.0%", f"[{low:.1%},", f"{high:.1%}]", f"0/{NUM_VALID}"]
    expected = Counter(SOURCE.task_type(task) for task in SOURCE.tasks("valid"))
    assert {line.split()[0]: line.split()[-1] for line in types} == {name: f"0/{n}" for name, n in expected.items()}


def test_episodes_that_the_environment_broke_are_in_no_rate(run_dir, monkeypatch, capsys):
    broken, step = SOURCE.tasks("valid")[2], HouseholdEnv.step

    def breaks(self, action: str):
        if self.game.id == broken:
            raise RuntimeError("broken")
        return step(self, action)

    monkeypatch.setattr(HouseholdEnv, "step", breaks)
    result = evaluated(run_dir, "--split valid", capsys)
    assert (result["episodes"], result["errors"]) == (NUM_VALID - 1, 1)
    whole = Counter(SOURCE.task_type(task) for task in SOURCE.tasks("valid") if task != broken)
    assert {name: rate["episodes"] for name, rate in result["by_type"].items()} == whole
    assert result["mean_turns"] == SMALL["environment.max_turns"]


def test_where_every_episode_was_lost_there_is_no_rate_and_the_output_is_json_all_the_same(
    run_dir, monkeypatch, capsys
):
    def breaks(self, action: str):
        raise RuntimeError("broken")

    monkeypatch.setattr(HouseholdEnv, "step", breaks)
    result = evaluated(run_dir, "--split valid", capsys)
    assert result["success_rate"] is None
    assert (result["episodes"], result["errors"], result["by_type"]) == (0, NUM_VALID, {})
    assert (result["low"], result["high"]) == (0, 1)


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ("", "run/checkpoints/step-3/policy"),
        ("--checkpoint latest", "run/checkpoints/step-3/policy"),
        ("--checkpoint best", "run/checkpoints/step-1/policy"),
        ("--checkpoint step-2", "run/checkpoints/step-2/policy"),
        ("--checkpoint initial", "model"),
    ],
)
def test_the_checkpoint_asked_for_is_the_one_that_plays(run_dir, words, folder, monkeypatch, capsys):
    held: list[dict[str, torch.Tensor]] = []
    load = HfSampler.load_weights

    def noted(self, named_tensors, *, version: int) -> None:
        given = dict(named_tensors)
        held.append({name: tensor.clone() for name, tensor in given.items()})
        load(self, given.items(), version=version)

    monkeypatch.setattr(HfSampler, "load_weights", noted)
    evaluated(run_dir, f"--split valid --limit 1 {words}", capsys)
    [weights] = held

    def equal(place: str) -> bool:
        saved = load_file(run_dir.parent / place / "model.safetensors")
        return all(torch.equal(weights[name], tensor) for name, tensor in saved.items())

    assert equal(folder)
    places = ["model", *(f"run/checkpoints/step-{step}/policy" for step in (1, 2, 3))]
    assert [place for place in places if equal(place)] == [folder]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--run {elsewhere} --split valid", r"--run: .*elsewhere is not a run directory .*give one like runs/default"),
        ("--run {run} --split test", r"--split: these games have no split 'test'; there are train, valid"),
        ("--run {run} --split valid --limit 0", r"--limit: 0 tasks cannot be played; give 1 or more"),
        (
            "--run {run} --split valid --checkpoint step-9",
            r"--checkpoint: .* holds no 'step-9'; it has initial, step-1, step-2, step-3",
        ),
        (
            "--run {young} --split valid",
            r"--run: .*young holds no checkpoint yet; wait for one, or give --checkpoint initial",
        ),
        ("--split valid", r"--config and --env: both say .*; give --run DIR, --config FILE or --env NAME"),
        ("--config household --env household", r"--config and --env: .*; give only one of the two"),
        ("--run {run} --env webshop", r"--env: webshop, but environment.name is household; leave one of the two out"),
        ("--env household --environment.name webshop", r"--env: household, but environment.name is webshop;"),
        ("--run {run} --config household", r"--config household: a run is evaluated under its own settings;"),
        ("--run {run} --policy.model tiny", r"--policy.model: a run is evaluated under its own settings;"),
        ("--env household --checkpoint best", r"--checkpoint best: only a run has that; give --run DIR"),
        ("--env household --with-skills", r"--with-skills: only a run has that; give --run DIR"),
        ("--env household --eval.limit none", r"--eval.limit: .none. should be"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_one_line(run_dir, words, message, tmp_path, capsys):
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "config.yaml").write_text((run_dir / "config.yaml").read_text())
    command = words.format(run=run_dir, elsewhere=tmp_path / "elsewhere", young=tmp_path / "young")
    assert cli.main(["eval", *command.split()]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    [line] = shown.err.splitlines()
    assert re.match(f"siri eval: {message}", line), line


def test_the_initial_policy_can_be_evaluated_before_there_is_a_checkpoint(run_dir, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text((run_dir / "config.yaml").read_text())
    initial = "--split valid --checkpoint initial"
    assert evaluated(tmp_path, initial, capsys) == evaluated(run_dir, initial, capsys)


def test_a_configuration_is_evaluated_without_a_run(run_dir, capsys):
    """Its policy.model as it is, on its eval.split: what a run of it starts from."""
    before = evaluated(run_dir, "--split valid --checkpoint initial", capsys)
    assert cli.main(["eval", "--config", str(run_dir / "config.yaml"), "--json"]) == 0
    assert strict(capsys.readouterr().out) == before
    words = ["--environment.num_valid", "3", "--limit", "2"]
    assert cli.main(["eval", "--config", str(run_dir / "config.yaml"), "--json", *words]) == 0
    assert strict(capsys.readouterr().out)["episodes"] == 2


GAMES = ProceduralGames(size="small", num_train=1, num_valid=30, seed=0)
RENDERER = Renderer(tokenizer(), style="compact", shorten=brief)
MAX_TURNS, RUN_SEED = 7, 5


def stumbles(seed: int) -> bool:
    return random.Random(seed).random() < 0.2


class Walker:
    """A sampler that solves every game the shortest way, but for the turns whose seed has it look around."""

    held_version = 0

    def __init__(self) -> None:
        self.solutions = {}
        for task_id in GAMES.tasks("valid"):
            dialogue, env = RENDERER.dialogue(), GAMES.make(task_id)
            dialogue.start(env.task, env.reset())
            self.solutions[tuple(dialogue.prompt_ids())] = GAMES.game(task_id).walkthrough
        assert len(self.solutions) == 30
        self.steps: Counter = Counter()
        self.pending: list[SampleRequest] = []

    def submit(self, request: SampleRequest) -> None:
        check_version(request, self.held_version)
        assert request.temperature == EvalConfig().temperature
        self.pending.append(request)

    def poll(self) -> list[Completion]:
        request = self.pending.pop()
        ids = request.prompt_ids.tolist()
        opening = tuple(ids[: ids.index(RENDERER.before_action[0]) + 1])
        action = "look"
        if not stumbles(request.seed):
            action = self.solutions[opening][self.steps[request.id]]
            self.steps[request.id] += 1
        drawn = np.array([*RENDERER.literal(action), RENDERER.after_action[0]], dtype=np.int32)
        logprob = np.zeros(len(drawn), dtype=np.float32)
        return [Completion(id=request.id, action_ids=drawn, logprob=logprob, finished_by="stop")]


def walked(world: World, limit: int | None = None) -> Evaluation:
    return evaluate(
        Walker(),
        GAMES,
        RENDERER,
        split="valid",
        policy=PolicyConfig(max_prompt_tokens=10**6),
        config=EvalConfig(limit=limit),
        max_turns=MAX_TURNS,
        max_concurrent=4,
        seed=RUN_SEED,
        policy_version=0,
        world=world,
    )


@pytest.mark.parametrize("limit", [None, 11, 1000])
def test_rates_are_those_of_the_games_that_the_seeds_leave_time_to_solve(limit):
    wins: defaultdict[str, list[bool]] = defaultdict(list)
    turns = []
    for index, task_id in enumerate(GAMES.tasks("valid")[:limit]):
        seeds = [
            request_seed(run_seed=RUN_SEED, step=EVAL_STEP, group=index, member=0, turn=turn)
            for turn in range(MAX_TURNS)
        ]
        good = np.cumsum([not stumbles(seed) for seed in seeds])
        needed = len(GAMES.game(task_id).walkthrough)
        won = bool(good[-1] >= needed)
        wins[GAMES.task_type(task_id)].append(won)
        turns.append(int(np.argmax(good == needed)) + 1 if won else MAX_TURNS)
    result = walked(World(), limit)
    assert {name: (rate.successes, rate.episodes) for name, rate in result.by_type.items()} == {
        name: (sum(won), len(won)) for name, won in wins.items()
    }
    assert result.overall.successes == sum(map(sum, wins.values()))
    assert result.overall.episodes == len(turns)
    assert 0 < result.overall.rate < 1
    assert result.mean_turns == pytest.approx(np.mean(turns))
    assert result.errors == 0


@pytest.mark.multirank
@pytest.mark.timeout(600)
def test_two_ranks_count_what_one_does(tmp_path):
    alone = walked(World())
    assert on_ranks(2, walked, folder=tmp_path) == [alone, alone]


@pytest.mark.multirank
@pytest.mark.timeout(600)
def test_the_command_on_two_ranks_prints_the_numbers_of_one(run_dir, tmp_path, capsys):
    alone = evaluated(run_dir, "--split valid", capsys)
    script = tmp_path / "siri_eval.py"
    script.write_text("import sys\nfrom siri.cli import main\nsys.exit(main())\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    # Without the two dashes torchrun takes --run for an abbreviation of its own --run-path.
    command = [*torchrun, "--", str(script), "eval", "--run", str(run_dir), "--split", "valid", "--json"]
    assert strict(subprocess.run(command, check=True, capture_output=True, text=True, timeout=550).stdout) == alone


@pytest.mark.parametrize(("no_validation", "used"), [(False, ["s0001"]), (True, ["s0001", "s0002"])])
def test_the_bank_in_use_is_what_proved_itself_or_without_validation_all_that_was_not_given_up(no_validation, used):
    bank = bank_of("mug", "book", "egg", n_eval=1)
    assert judge(bank, 0.5, id="s0001") == ["active"]
    assert judge(bank, -0.5, id="s0003", start=2) == ["retired"]
    state = {"guidance": {"bank": json.loads(json.dumps(bank.as_dict()))}}
    checkpoint = Checkpoint(step=3, path=Path("step-3"), state=state, random_states=())
    found = bank_in_use(checkpoint, RunConfig(no_validation=no_validation))
    assert [skill.id for skill in found.live] == used
