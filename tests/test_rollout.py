import logging
import random
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_fakes import VERSION, FakeDialogue, FakeGame, FakeSampler, SlowFakeGame, draw, episode, values_of

from siri.engine.rollout import Episode, Progress, collect
from siri.engine.sampling import SampleRequest, StaleWeightsError, request_seed
from siri.engine.trajectory import Ended, Trajectory

RULES = {
    "max_turns": 6,
    "max_prompt_tokens": 1000,
    "max_action_tokens": 4,
    "temperature": 0.9,
    "run_seed": 11,
    "step": 5,
    "policy_version": VERSION,
}


def play_alone(episode: Episode, rules: dict) -> dict:
    """What `collect` must make of one episode, as the plainest loop: values of the trajectory, turn by turn."""
    game, dialogue, turns, success = episode.environment, FakeDialogue(), [], False

    def result(ended: Ended, error: str = "") -> dict:
        return {"turns": turns, "ended": ended, "success": success, "error": error}

    try:
        before = game.reset()
        dialogue.start(game.task, before)
        while True:
            if before.done:
                success = before.success
                return result(Ended.DONE)
            if len(turns) == rules["max_turns"]:
                return result(Ended.MAX_TURNS)
            prompt = dialogue.prompt_ids()
            if len(prompt) > rules["max_prompt_tokens"]:
                return result(Ended.PROMPT_TOO_LONG)
            seed = request_seed(
                run_seed=rules["run_seed"],
                step=rules["step"],
                group=episode.group,
                member=episode.member,
                turn=len(turns),
            )
            drawn = draw(
                SampleRequest(
                    id=0,
                    prompt_ids=prompt,
                    seed=seed,
                    temperature=rules["temperature"],
                    max_tokens=rules["max_action_tokens"],
                    stop_token_ids=(1,),
                    policy_version=VERSION,
                )
            )
            parsed = dialogue.parse(drawn.action_ids)
            after = game.step(parsed.text)
            listed = before.admissible is None or parsed.text in before.admissible
            turns.append(
                {
                    "prompt_ids": prompt.tolist(),
                    "action_ids": drawn.action_ids.tolist(),
                    "behavior_logprob": drawn.logprob.tolist(),
                    "action_span": parsed.span,
                    "observation": before.text,
                    "action": parsed.text,
                    "anchor": before.anchor,
                    "reward": after.reward,
                    "action_valid": parsed.parsed and listed,
                    "policy_version": VERSION,
                }
            )
            if not after.done and len(turns) < rules["max_turns"]:
                dialogue.advance(drawn.action_ids, parsed, after)
            before = after
    except KeyError as error:
        return result(Ended.ENV_ERROR, f"KeyError: {error}")


games = st.builds(
    dict,
    length=st.integers(0, 8),
    breaks_at=st.none() | st.integers(0, 8),
    lists_actions=st.booleans(),
    wins=st.booleans(),
    slow=st.booleans(),
)


@given(
    games=st.lists(games, max_size=12),
    max_concurrent=st.integers(1, 6),
    max_turns=st.integers(1, 7),
    max_prompt_tokens=st.integers(1, 30),
    polls=st.integers(0, 1000),
)
def test_every_episode_is_what_it_would_be_alone(games, max_concurrent, max_turns, max_prompt_tokens, polls):
    rules = {**RULES, "max_turns": max_turns, "max_prompt_tokens": max_prompt_tokens}
    episodes, alone = [], []
    for index, game in enumerate(games):
        kind = SlowFakeGame if game["slow"] else FakeGame
        settings = {name: value for name, value in game.items() if name != "slow"}
        episodes.append(episode(index // 3, index % 3, kind(f"game {index}", **settings), condition=("skill",)))
        alone.append(play_alone(episode(index // 3, index % 3, FakeGame(f"game {index}", **settings)), rules))
    sampler = FakeSampler(delays=random.Random(polls))
    trajectories = collect(sampler, episodes, **rules, max_concurrent=max_concurrent)
    assert [values_of(trajectory) for trajectory in trajectories] == alone
    assert [(t.group, t.member, t.task_id) for t in trajectories] == [(e.group, e.member, e.task_id) for e in episodes]
    assert all(t.condition == ("skill",) and t.task_type == "fake" for t in trajectories)
    assert sampler.most_pending <= max_concurrent
    # Live environments only: one request a turn, but for the turn in which an environment broke.
    broke_acting = sum(
        t.ended is Ended.ENV_ERROR and e.environment.steps > 0 for t, e in zip(trajectories, episodes, strict=True)
    )
    assert len(sampler.requests) == sum(len(t.turns) for t in trajectories) + broke_acting


class OutspokenGame(FakeGame):
    """Says itself which actions it accepted: those above ten, whatever it lists."""

    def step(self, action):
        return replace(super().step(action), action_valid=action.isdigit() and int(action) > 10)


def test_an_environment_has_the_last_word_on_its_actions():
    games = [OutspokenGame(f"game {i}", length=6, lists_actions=i % 2 == 0) for i in range(8)]
    trajectories = collect(FakeSampler(), [episode(0, i, game) for i, game in enumerate(games)], **RULES)
    said = [(turn.action, turn.action_valid) for trajectory in trajectories for turn in trajectory.turns]
    assert all(valid == (action.isdigit() and int(action) > 10) for action, valid in said)
    # Both verdicts fall on actions that the list would have judged otherwise; an unreadable one stays invalid.
    listed = {(int(action) % 2 == 0, valid) for action, valid in said if action.isdigit()}
    assert listed == {(True, True), (True, False), (False, True), (False, False)}
    assert ("?", False) in said


class TwinDialogue(FakeDialogue):
    """Shows one token more than the dialogue that is sampled from."""

    def start(self, task, observation):
        super().start(task, observation)
        self.ids.insert(0, 99)

    def parse(self, action_ids):
        raise AssertionError("nothing is read back from a twin")


@given(games=st.lists(games, max_size=6), max_turns=st.integers(1, 7), max_prompt_tokens=st.integers(1, 30))
def test_a_twin_is_kept_in_step_and_never_sampled_from(games, max_turns, max_prompt_tokens):
    rules = {**RULES, "max_turns": max_turns, "max_prompt_tokens": max_prompt_tokens}

    def played(twins: bool, limit: int) -> tuple[list[Trajectory], int]:
        episodes = []
        for index, game in enumerate(games):
            kind = SlowFakeGame if game["slow"] else FakeGame
            settings = {name: value for name, value in game.items() if name != "slow"}
            one = episode(0, index, kind(f"game {index}", **settings))
            episodes.append(replace(one, twin=TwinDialogue) if twins else one)
        sampler = FakeSampler()
        return collect(sampler, episodes, **{**rules, "max_prompt_tokens": limit}), len(sampler.requests)

    alone, requests = played(twins=False, limit=max_prompt_tokens)
    # The twin's prompt is the longer one by a token, and a row of it has to fit as well.
    paired, requests_of_pairs = played(twins=True, limit=max_prompt_tokens + 1)
    assert requests_of_pairs == requests
    assert [values_of(trajectory) for trajectory in paired] == [values_of(trajectory) for trajectory in alone]
    assert all(turn.twin_prompt_ids is None for trajectory in alone for turn in trajectory.turns)
    for trajectory in paired:
        for turn in trajectory.turns:
            assert turn.twin_prompt_ids.tolist() == [99, *turn.prompt_ids.tolist()]
            assert turn.twin_prompt_ids.dtype == np.int32


def test_there_is_no_lock_step():
    sampler = FakeSampler(slow=frozenset({0}))
    collect(sampler, [episode(0, 0, FakeGame("slow", length=1)), episode(0, 1, FakeGame("fast", length=5))], **RULES)
    first_of_slow = sampler.events.index(("complete", 0))
    assert sampler.events[:first_of_slow].count(("complete", 1)) == 5


def test_environments_that_wait_are_waited_for_together():
    slow = [episode(0, member, SlowFakeGame("slow", length=3, seconds=0.1)) for member in range(8)]
    fast = [episode(1, member, FakeGame("fast", length=3)) for member in range(8)]
    sampler = FakeSampler()
    start = time.perf_counter()
    trajectories = collect(sampler, slow + fast, **RULES)
    seconds = time.perf_counter() - start
    assert all(len(trajectory.turns) == 3 for trajectory in trajectories)
    assert 0.4 <= seconds < 1.6  # four calls of 0.1 s one after the other; 32 of them would be 3.2 s
    ends = [id for kind, id in sampler.events if kind == "complete"]
    last_of_fast = max(place for place, id in enumerate(ends) if id >= 8)
    assert all(ends[:last_of_fast].count(id) < 3 for id in range(8))


def test_admission_follows_endings():
    sampler = FakeSampler(slow=frozenset({0}))
    lengths = (1, 2, 1, 3)
    episodes = [episode(0, member, FakeGame("x", length=length)) for member, length in enumerate(lengths)]
    collect(sampler, episodes, **RULES, max_concurrent=2)
    assert sampler.most_pending == 2
    submitted = [id for kind, id in sampler.events if kind == "submit"]
    assert submitted == [0, 1, 1, 2, 3, 3, 3]


def test_endings():
    def ended(game: FakeGame, **changes: int) -> Trajectory:
        return collect(FakeSampler(), [episode(0, 0, game)], **{**RULES, **changes})[0]

    assert ended(FakeGame("x", length=6)).ended is Ended.DONE
    assert ended(FakeGame("x", length=7)).ended is Ended.MAX_TURNS
    assert ended(FakeGame("x", length=0)).ended is Ended.DONE
    assert ended(FakeGame("x", length=0)).turns == ()
    longest = max(len(turn.prompt_ids) for turn in ended(FakeGame("x", length=6)).turns)
    assert ended(FakeGame("x", length=6), max_prompt_tokens=longest).ended is Ended.DONE
    cut = ended(FakeGame("x", length=6), max_prompt_tokens=longest - 1)
    assert (cut.ended, len(cut.turns), cut.success) == (Ended.PROMPT_TOO_LONG, 5, False)
    first = ended(FakeGame("x"), max_prompt_tokens=1)
    assert (first.ended, first.turns) == (Ended.PROMPT_TOO_LONG, ())


@pytest.mark.parametrize("kind", [FakeGame, SlowFakeGame])
def test_a_broken_environment_costs_its_own_episode(caplog, kind):
    def episodes(broken: bool) -> list[Episode]:
        names = ("a", "b", "c", "d")
        breaks = {"b": 0, "c": 2} if broken else {}
        return [episode(0, m, kind(name, breaks_at=breaks.get(name))) for m, name in enumerate(names)]

    whole = collect(FakeSampler(), episodes(False), **RULES)
    with caplog.at_level(logging.WARNING):
        broken = collect(FakeSampler(), episodes(True), **RULES)
    assert [values_of(broken[i]) for i in (0, 3)] == [values_of(whole[i]) for i in (0, 3)]
    assert (broken[1].ended, broken[1].error, broken[1].turns) == (Ended.ENV_ERROR, "KeyError: 'b broke at 0'", ())
    assert (broken[2].ended, broken[2].error, len(broken[2].turns)) == (Ended.ENV_ERROR, "KeyError: 'c broke at 2'", 1)
    assert len(caplog.records) == 1
    assert "broke at" in caplog.text


def test_stale_weights_are_not_an_environments_fault():
    with pytest.raises(StaleWeightsError, match="policy version 4, but the sampler holds version 3"):
        collect(FakeSampler(held_version=3), [episode(0, 0, FakeGame("x"))], **RULES)


def test_requests_carry_the_settings():
    sampler = FakeSampler()
    collect(sampler, [episode(7, 2, FakeGame("x", length=2))], **RULES)
    first, second = sampler.requests
    assert (first.temperature, first.max_tokens, first.stop_token_ids, first.policy_version) == (0.9, 4, (1,), VERSION)
    assert [first.seed, second.seed] == [request_seed(run_seed=11, step=5, group=7, member=2, turn=t) for t in (0, 1)]
    assert first.prompt_ids.dtype == np.int32


def test_progress():
    seen: list[Progress] = []
    episodes = [episode(0, m, FakeGame("x", length=m, breaks_at=2, wins=m < 1)) for m in range(4)]
    trajectories = collect(FakeSampler(), episodes, **RULES, max_concurrent=2, on_progress=seen.append)
    assert seen[-1] == Progress(
        total=4,
        finished=4,
        live=0,
        successes=1,
        errors=2,
        turns=3,
        tokens=sum(len(turn.action_ids) for t in trajectories for turn in t.turns),
    )
    assert [progress.finished for progress in seen] == sorted({progress.finished for progress in seen})
    assert all(progress.live <= 2 for progress in seen)


def test_request_seeds_stay_what_they_are():
    """Recorded values: with other seeds, no run could be repeated or resumed by a later version."""
    assert request_seed(run_seed=0, step=0, group=0, member=0, turn=0) == 1486842708666241451
    assert request_seed(run_seed=1, step=2, group=3, member=4, turn=5) == 2448955688281105790


@given(a=st.tuples(*[st.integers(0, 10**6)] * 5), b=st.tuples(*[st.integers(0, 10**6)] * 5))
def test_request_seeds_differ(a, b):
    names = ("run_seed", "step", "group", "member", "turn")
    seeds = [request_seed(**dict(zip(names, numbers, strict=True))) for numbers in (a, b)]
    assert (seeds[0] == seeds[1]) == (a == b)
    assert all(0 <= seed < 2**63 for seed in seeds)
