"""The warm start: what is imitated is what the dialogue shows, and a short one learns, loads and can be repeated."""

import hashlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tokenizer

from siri import cli, demonstrations, warmstart
from siri.demonstrations import Play, copy_example, play, play_example, skill_example, solved
from siri.engine.errors import UserError
from siri.engine.policy import load_policy
from siri.engine.rollout import Episode, collect
from siri.engine.sampling import Completion, SampleRequest
from siri.engine.trajectory import Ended, Trajectory
from siri.envs.household import Game, HouseholdEnv
from siri.envs.household.brief import brief
from siri.envs.household.experts import SearchingExpert
from siri.envs.household.generator import generate_game
from siri.envs.household.tasks import read_sentence
from siri.prompts import Renderer
from siri.tiny import new_model
from siri.warmstart import WarmstartConfig, check, examples

SMALL = WarmstartConfig(
    steps=100,
    size="small",  # the rooms of full games alone are longer than a row
    max_turns=16,
    vocab_size=400,
    hidden=32,
    layers=1,
    heads=2,
    intermediate=64,
    rows=2,
    row_tokens=96,
)
WEIGHTS = "model.safetensors"
FEW = 20


def renderer_of(some_tokenizer) -> Renderer:
    return Renderer(some_tokenizer, style="compact", shorten=brief)


RENDERER = renderer_of(tokenizer())


@pytest.fixture(scope="module")
def few_episodes():
    """The tokenizer's corpus is what takes the time of a short warm start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warmstart, "CORPUS_EPISODES", FEW)
        yield


@pytest.fixture(scope="module")
def made(few_episodes, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("warmstart") / "policy"
    warmstart.warmstart(SMALL, path)
    return path


def test_a_short_warm_start_learns(made):
    lines = [json.loads(line) for line in (made / "warmstart.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [50, 100]
    losses = [line["loss"] for line in lines]
    assert losses[0] < math.log(SMALL.vocab_size)
    assert losses[1] < 0.85 * losses[0]
    seconds = [line["seconds"] for line in lines]
    assert 0 < seconds[0] < seconds[1]
    assert all(line["tokens_per_second"] > 0 for line in lines)


def imitation_loss(model, renderer: Renderer) -> float:
    """Nats an action token, in episodes that no warm start of these tests gets to see, each alone."""
    found = []
    for index in range(10**6, 10**6 + 20):
        example = play_example(play(index, size=SMALL.size, max_turns=8), renderer)
        ids = torch.from_numpy(example.ids).long()
        with torch.no_grad():
            logprob = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0].log_softmax(dim=-1)
        found += [-float(logprob[i - 1, ids[i]]) for i in range(1, len(ids)) if example.weight[i] == 1]
    return float(np.mean(found))


def test_what_it_writes_loads_as_a_policy_that_has_learnt_to_act(made):
    policy = load_policy(str(made), dtype=torch.float32, device=torch.device("cpu"))
    renderer = renderer_of(policy.tokenizer)
    untrained = new_model(
        policy.tokenizer,
        hidden=SMALL.hidden,
        layers=SMALL.layers,
        heads=SMALL.heads,
        intermediate=SMALL.intermediate,
        seed=SMALL.seed,
    )
    before, after = imitation_loss(untrained, renderer), imitation_loss(policy.model, renderer)
    assert before == pytest.approx(math.log(len(policy.tokenizer)), abs=0.3)
    assert after < before - 1
    about = json.loads((made / "warmstart.json").read_text())
    assert about["parameters"] == sum(parameter.numel() for parameter in untrained.parameters())
    assert about["versions"]["torch"] == torch.__version__


def test_the_command_it_leaves_makes_the_same_policy_again(made, tmp_path):
    about = json.loads((made / "warmstart.json").read_text())
    siri, *words = shlex.split(about["command"])
    assert siri == "siri"
    # Another process orders its sets in another way.
    few = f"import sys; from siri import cli, warmstart; warmstart.CORPUS_EPISODES = {FEW}; sys.exit(cli.main())"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": str(about["threads"])}
    subprocess.run([sys.executable, "-c", few, *words, "--out", str(tmp_path / "again")], check=True, env=environment)
    clocked = {"warmstart.json", "warmstart.jsonl"}
    names = {path.name for path in made.iterdir()}
    assert names == {path.name for path in (tmp_path / "again").iterdir()}
    assert {"config.json", "tokenizer.json", WEIGHTS} <= names - clocked
    for name in names - clocked:
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes(), name
    assert json.loads((tmp_path / "again" / "warmstart.json").read_text())["command"] == about["command"]


def test_a_warm_start_goes_on_from_an_earlier_policy_and_says_so(made, tmp_path):
    config = replace(SMALL, seed=3, steps=50, lr=1e-3, start=str(made), hidden=64)
    warmstart.warmstart(config, tmp_path / "on")
    earlier, later = (
        load_policy(str(path), dtype=torch.float32, device=torch.device("cpu")) for path in (made, tmp_path / "on")
    )
    assert later.tokenizer.get_vocab() == earlier.tokenizer.get_vocab()
    assert later.model.config.hidden_size == SMALL.hidden
    assert json.loads((tmp_path / "on" / "warmstart.jsonl").read_text())["loss"] < 0.9 * first_loss(made)
    renderer = renderer_of(earlier.tokenizer)
    assert imitation_loss(later.model, renderer) < imitation_loss(earlier.model, renderer)
    about = json.loads((tmp_path / "on" / "warmstart.json").read_text())
    assert about["start"] == json.loads((made / "warmstart.json").read_text())
    assert f"--start {made}" in about["command"]


def first_loss(made: Path) -> float:
    return json.loads((made / "warmstart.jsonl").read_text().splitlines()[0])["loss"]


def test_another_seed_makes_another_policy(made, tmp_path):
    _, *words = shlex.split(json.loads((made / "warmstart.json").read_text())["command"])
    assert cli.main([*words, "--seed", "1", "--out", str(tmp_path)]) == 0
    assert (tmp_path / WEIGHTS).read_bytes() != (made / WEIGHTS).read_bytes()


def test_the_smallest_vocabulary_is_enough(few_episodes, tmp_path):
    config = replace(SMALL, steps=1, vocab_size=warmstart.SMALLEST_VOCABULARY)
    check(config)
    warmstart.warmstart(config, tmp_path / "letters")
    assert load_policy(str(tmp_path / "letters"), dtype=torch.float32, device=torch.device("cpu"))


LEAST = {"seed": 0, "vocab_size": warmstart.SMALLEST_VOCABULARY}
INTEGERS = [name for name, value in asdict(WarmstartConfig()).items() if isinstance(value, int)]


@pytest.mark.parametrize("name", INTEGERS)
def test_a_number_that_makes_no_model_is_refused_by_the_name_of_its_flag(name):
    least = LEAST.get(name, 1)
    wide = WarmstartConfig(heads=1)  # else another number of heads would not divide `hidden`
    check(replace(wide, **{name: least * 2 if name == "hidden" else least}))
    flag = "--" + name.replace("_", "-")
    with pytest.raises(UserError, match=rf"^{flag}: {least - 1} is too small; give {least} or more$"):
        check(replace(wide, **{name: least - 1}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "huge"}, r"^--size: 'huge' is not a size of household games; use small or full or both$"),
        ({"lr": 0.0}, r"^--lr: 0\.0 is not a learning rate; give a number above 0"),
        ({"lr": -1.0}, r"^--lr: -1\.0 is not"),
        ({"lr": math.inf}, r"^--lr: inf is not"),
        ({"lr": math.nan}, r"^--lr: nan is not"),
        ({"hidden": 100, "heads": 3}, r"^--hidden: 100 does not divide into 3 heads of even width; .* multiple of 6$"),
        ({"hidden": 9, "heads": 3}, r"^--hidden: 9 does not divide into 3 heads of even width"),
    ],
)
def test_a_setting_that_makes_no_model_is_refused_by_the_name_of_its_flag(settings, message):
    with pytest.raises(UserError, match=message):
        check(replace(WarmstartConfig(), **settings))
    check(WarmstartConfig())


def kind_of(text: str) -> str:
    return {"Task": "play", "Solved": "skill"}.get(text.strip().partition(":")[0], "copy")


def test_drills_come_first_then_mostly_play_as_the_seed_decides(made):
    renderer = renderer_of(load_policy(str(made), dtype=torch.float32, device=torch.device("cpu")).tokenizer)
    config = replace(SMALL, max_turns=3)
    shown = list(islice(examples(config, renderer), 500))
    kinds = [kind_of(renderer.decode(example.ids)) for example in shown]
    before = np.cumsum([0, *(len(example.ids) for example in shown)])[:-1]
    opening = int((before < 0.05 * config.steps * config.rows * config.row_tokens).sum())
    assert 10 < opening < 50
    assert set(kinds[:opening]) == {"copy"}
    later = Counter(kinds[opening:])
    assert set(later) == {"play", "skill", "copy"}
    for kind in ("skill", "copy"):  # 5% of 400: three standard deviations are 3.3%
        assert later[kind] / later.total() == pytest.approx(0.05, abs=0.033)
    for example, same in zip(shown[:100], examples(config, renderer), strict=False):
        assert np.array_equal(same.ids, example.ids)
        assert np.array_equal(same.weight, example.weight)
    other = list(islice(examples(replace(config, seed=1), renderer), 200))
    assert not {tuple(example.ids) for example in shown} & {tuple(example.ids) for example in other}


def game_of(index: int) -> Game:
    """A game that every play is of: its task id names the train split."""
    game = generate_game(f"warmstart-{index}", size="small", split="train")
    assert re.match(r"proc\d+/small/train/", game.id)
    return game


PLAYS = range(-5, 35)


def test_play_is_a_function_of_its_index_and_of_train_games_only():
    plays = [play(index, size="small", max_turns=12) for index in PLAYS]
    assert plays == [play(index, size="small", max_turns=12) for index in PLAYS]
    assert len({played.observations for played in plays}) == len(plays)
    for index, played in zip(PLAYS, plays, strict=True):
        assert played.task == game_of(index).task
        assert played.observations[0] == HouseholdEnv(game_of(index)).reset()
        assert len(played.imitate) == len(played.actions) == len(played.observations) - 1
        assert len(played.actions) == 12 or played.observations[-1].success


def test_only_what_was_drawn_at_random_is_not_imitated(monkeypatch):
    def imitated() -> list[bool]:
        return [flag for index in PLAYS for flag in play(index, size="small", max_turns=32).imitate]

    flags = imitated()
    # About 800 actions, of which one in twenty is random: three standard deviations are 2.3%.
    assert len(flags) > 600
    assert flags.count(False) / len(flags) == pytest.approx(0.05, abs=0.025)
    monkeypatch.setattr(demonstrations, "NOISE", 0.0)
    assert all(imitated())
    monkeypatch.setattr(demonstrations, "NOISE", 1.0)
    assert not any(imitated())


def test_hints_name_where_the_expert_then_looks_first(monkeypatch):
    hinted = [bool(play(index, size="small", max_turns=1).hints) for index in range(300)]
    assert sum(hinted) / 300 == pytest.approx(0.5, abs=0.09)
    for name, value in {"NOISE": 0.0, "DITHER": 0.0, "HINTED": 1.0}.items():
        monkeypatch.setattr(demonstrations, name, value)
    seen = Counter()
    for index in range(200):
        played = play(index, size="both", max_turns=1)
        errand = read_sentence(played.task)
        told = []
        for hint in played.hints:
            sought, kinds = re.fullmatch(r"when you need (\w+): look at (.+)", hint).groups()
            assert sought == errand.thing or (errand.task_type, sought) == ("look_at_obj_in_light", errand.target)
            told += kinds.split(", ") if sought == errand.thing else []
            seen["lamp"] += sought == errand.target
        here = {name.partition(" ")[0] for name in brief(played.observations[0].text).split(", ")}
        there = [kind for kind in told if kind in here]
        if there:
            assert played.actions[0].startswith(f"go to {there[0]} ")
        seen["hints", len(played.hints)] += 1
        seen["not here"] += len(there) < len(told)
        seen["followed"] += bool(there)
    # One in nine tasks has a lamp; one hint in three names any receptacle of such rooms.
    assert seen["lamp"] > 3
    assert seen["not here"] > 20
    assert seen["followed"] > 150
    assert all(seen["hints", number] > 40 for number in (1, 2, 3))


@dataclass
class Recital:
    """A sampler that draws known actions, one after the other."""

    actions: list[str]
    held_version: int = 0

    def submit(self, request: SampleRequest) -> None:
        self.request = request

    def poll(self) -> list[Completion]:
        ids = np.array([*RENDERER.literal(self.actions.pop(0)), RENDERER.after_action[0]], dtype=np.int32)
        return [
            Completion(id=self.request.id, action_ids=ids, logprob=np.zeros(len(ids), np.float32), finished_by="stop")
        ]


def rolled_out(index: int, played: Play, *, max_turns: int) -> Trajectory:
    """The rollout that trains the policy, with the actions of `played`."""
    episode = Episode(
        group=0,
        member=0,
        task_id=game_of(index).id,
        task_type="",
        environment=HouseholdEnv(game_of(index)),
        dialogue=partial(RENDERER.dialogue, played.hints),
    )
    [trajectory] = collect(
        Recital(list(played.actions)),
        [episode],
        max_turns=max_turns,
        max_prompt_tokens=10**6,
        max_action_tokens=100,
        temperature=1.0,
        run_seed=0,
        step=0,
        policy_version=0,
    )
    return trajectory


@pytest.mark.parametrize("max_turns", [3, 100])
def test_a_play_is_token_for_token_what_a_rollout_of_its_actions_shows(max_turns, monkeypatch):
    monkeypatch.setattr(demonstrations, "NOISE", 0.3)
    ended = Counter()
    for index in PLAYS:
        played = play(index, size="small", max_turns=max_turns)
        trajectory = rolled_out(index, played, max_turns=max_turns)
        turns = trajectory.turns
        assert [turn.action for turn in turns] == list(played.actions)
        admissible = [seen.admissible for seen in played.observations]
        valid = [action in those for action, those in zip(played.actions, admissible, strict=False)]
        assert [turn.action_valid for turn in turns] == valid
        ids = [*turns[-1].prompt_ids, *turns[-1].action_ids]
        if trajectory.ended is Ended.MAX_TURNS:  # nobody answers the last message, yet it is there to be predicted
            ids += [*RENDERER.literal(brief(played.observations[-1].text)), *RENDERER.before_action]
        example = play_example(played, RENDERER)
        assert example.ids.tolist() == ids
        weight = np.zeros(len(ids), np.float32)
        starts = [len(turn.prompt_ids) for turn in turns]
        ends = [start + len(turn.action_ids) for start, turn in zip(starts, turns, strict=True)]
        for start, end, imitate in zip(starts, ends, played.imitate, strict=True):
            weight[start:end] = 1 if imitate else 0
        for end, following in zip(ends, [*starts[1:], len(ids)], strict=True):
            weight[end : max(end, following - len(RENDERER.before_action))] = 0.2
        assert np.array_equal(example.weight, weight)
        ended[trajectory.ended, bool(played.hints), all(played.imitate)] += 1
    kept, with_hint, flawless = (set(values) for values in zip(*ended, strict=True))
    assert kept == {Ended.MAX_TURNS if max_turns == 3 else Ended.DONE}
    assert with_hint == {True, False}
    assert False in flawless


def test_a_skill_says_where_the_sought_thing_was_taken_or_the_lamp_was():
    told = Counter()
    for index in range(150):
        played = solved(index, size="both")
        assert played == solved(index, size="both")
        assert played.observations[-1].success
        assert not played.hints
        example = skill_example(played, RENDERER)
        ids = example.ids.tolist()
        start = len(ids) - ids[::-1].index(RENDERER.before_action[0])
        assert example.weight.tolist() == [0.0] * start + [1.0] * (len(ids) - start)
        assert ids[-1] == RENDERER.after_action[0]
        asked, answer = (RENDERER.decode(part).strip() for part in (ids[:start], ids[start:]))
        assert asked == f"Solved: {played.task}\n {'; '.join(played.actions)}\nWrite a skill."
        condition, strategy = re.fullmatch(r"When: (.+)\nDo: (.+)", answer).groups()
        errand = read_sentence(played.task)
        if condition == f"you need {errand.thing}":
            places = re.findall(rf"take {errand.thing} \d+ from (\w+) \d+", "; ".join(played.actions))
        else:
            assert condition == f"you need {errand.target}"
            assert errand.task_type == "look_at_obj_in_light"
            places = re.findall(r"go to (\w+) \d+", "; ".join(played.actions))[-1:]
        assert strategy == f"look at {', '.join(sorted(set(places), key=places.index))}"
        told[errand.task_type == "look_at_obj_in_light", condition == f"you need {errand.thing}"] += 1
    assert told[False, True] > 100
    assert told[True, True] > 2
    assert told[True, False] > 2


def test_solved_episodes_waste_anything_from_no_turn_to_two_in_five():
    shares = []
    for index in range(100):
        actions = solved(index, size="small").actions
        shares.append(sum(action in ("look", "inventory") for action in actions) / len(actions))
    assert np.mean(shares) == pytest.approx(0.2, abs=0.06)
    assert min(shares) == 0
    assert max(shares) > 0.35


def test_a_drill_repeats_its_words_and_imitates_the_repetition_only():
    vocabulary = np.arange(100, 200, dtype=np.int32)
    lengths = set()
    for index in range(300):
        example = copy_example(index, vocabulary, RENDERER)
        number = (len(example.ids) - 3) // 2
        words = example.ids[1 : 1 + number].tolist()
        assert set(words) <= set(vocabulary.tolist())
        expected = [*RENDERER.before_first, *words, *RENDERER.before_action, *words, RENDERER.after_action[0]]
        assert example.ids.tolist() == expected
        assert example.weight.tolist() == [0.0] * (number + 2) + [1.0] * (number + 1)
        lengths.add(number)
    assert lengths == set(range(3, 40))


def performed(game: Game, expert: SearchingExpert) -> list[str]:
    """Actions of a won episode."""
    env, actions = HouseholdEnv(game), []
    observation = env.reset()
    while not observation.done and len(actions) < 400:
        actions.append(expert.act(observation))
        observation = env.step(actions[-1])
    assert observation.success, (game.id, actions)
    return actions


def test_an_expert_that_does_not_dither_is_as_before_and_one_that_does_still_wins():
    idle = total = 0
    plain = []
    for index in PLAYS:
        game = game_of(index)
        plain.append(performed(game, SearchingExpert(game.task, seed=index, noise=0.1)))
        assert performed(game, SearchingExpert(game.task, seed=index, noise=0.1, dither=0.0)) == plain[-1]
        assert "inventory" not in performed(game, SearchingExpert(game.task, seed=index))
        actions = performed(game, SearchingExpert(game.task, seed=index, dither=0.5))
        held = False
        for action in actions:
            if action in ("look", "inventory"):
                assert (action == "inventory") is held
                idle += 1
            held = action.startswith("take ") or (held and not action.startswith("move "))
        total += len(actions)
    # Recorded before there was dithering, at commit 2dd1092.
    recorded = "3a684b4503394e757810d27e125a74d6ed1f608a6d32b9be5ca5d7ac5cfe385e"
    assert hashlib.sha256("\n".join(map("; ".join, plain[:30])).encode()).hexdigest() == recorded
    # About 600 actions: three standard deviations are 6%.
    assert total > 400
    assert idle / total == pytest.approx(0.5, abs=0.07)
