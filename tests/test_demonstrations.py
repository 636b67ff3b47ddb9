"""What the warm start imitates: what the dialogue shows, token for token, and skills that success has taught."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from models import tokenizer

from siri import household_plays
from siri.demonstrations import Play, copy_example, play_example, skill_example
from siri.engine.rollout import Episode, collect
from siri.engine.sampling import Completion, SampleRequest
from siri.engine.trajectory import Ended, Trajectory
from siri.envs.household import Game, HouseholdEnv
from siri.envs.household.brief import brief
from siri.envs.household.experts import SearchingExpert
from siri.envs.household.generator import generate_game
from siri.envs.household.tasks import read_sentence
from siri.household_plays import play, skill_of, solved
from siri.prompts import Renderer

RENDERER = Renderer(tokenizer(), style="compact", shorten=brief)


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
    monkeypatch.setattr(household_plays, "NOISE", 0.0)
    assert all(imitated())
    monkeypatch.setattr(household_plays, "NOISE", 1.0)
    assert not any(imitated())


def test_hints_name_where_the_expert_then_looks_first(monkeypatch):
    hinted = [bool(play(index, size="small", max_turns=1).hints) for index in range(300)]
    assert sum(hinted) / 300 == pytest.approx(0.5, abs=0.09)
    for name, value in {"NOISE": 0.0, "HINTED": 1.0}.items():
        monkeypatch.setattr(household_plays, name, value)
    seen = Counter()
    for index in range(200):
        played = play(index, size="both", max_turns=1, waste=0.0)
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
    monkeypatch.setattr(household_plays, "NOISE", 0.3)
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
        example = skill_example(played, skill_of(played), RENDERER)
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
