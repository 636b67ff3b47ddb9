"""A sampler, a game and a dialogue whose every move is known: rollouts without a model."""

import random
import time
from dataclasses import dataclass, field

import numpy as np

from siri.engine.dialogue import ParsedAction
from siri.engine.environment import Observation
from siri.engine.rollout import Episode
from siri.engine.sampling import Completion, SampleRequest, check_version
from siri.engine.trajectory import Trajectory

GARBLED = 13
"""A token that makes an action unreadable."""
VERSION = 4


def draw(request: SampleRequest) -> Completion:
    """One to four tokens that only the seed and the prompt decide."""
    rng = random.Random(request.seed + int(request.prompt_ids.sum()))
    tokens = [rng.randrange(2, 16) for _ in range(rng.randint(1, min(4, request.max_tokens)))]
    return Completion(
        id=request.id,
        action_ids=np.array(tokens, dtype=np.int32),
        logprob=np.array([-0.5 * token for token in tokens], dtype=np.float32),
        finished_by="length",
    )


@dataclass
class FakeSampler:
    """Gives a request back after a number of polls that differs from request to request."""

    delays: random.Random = field(default_factory=lambda: random.Random(0))
    slow: frozenset[int] = frozenset()
    """Requests that always take ten polls; the others then take one."""
    events: list[tuple[str, int]] = field(default_factory=list)
    requests: list[SampleRequest] = field(default_factory=list)
    most_pending: int = 0
    held_version: int | None = VERSION
    _pending: dict[int, tuple[int, SampleRequest]] = field(default_factory=dict)

    def submit(self, request: SampleRequest) -> None:
        check_version(request, self.held_version)
        assert request.id not in self._pending
        polls = (10 if request.id in self.slow else 1) if self.slow else self.delays.randint(1, 5)
        self._pending[request.id] = polls, request
        self.requests.append(request)
        self.events.append(("submit", request.id))
        self.most_pending = max(self.most_pending, len(self._pending))

    def poll(self) -> list[Completion]:
        assert self._pending, "polled with nothing to do"
        self._pending = {id: (polls - 1, request) for id, (polls, request) in self._pending.items()}
        ready = [request for polls, request in self._pending.values() if polls == 0]
        for request in ready:
            del self._pending[request.id]
            self.events.append(("complete", request.id))
        return [draw(request) for request in ready]


@dataclass
class FakeGame:
    """Done after `length` steps; raises at step `breaks_at` (0: in reset). Even actions are admissible, if it says."""

    name: str
    length: int = 3
    breaks_at: int | None = None
    lists_actions: bool = True
    wins: bool = True
    seconds: float = 0.0
    steps: int = -1
    over: bool = False

    @property
    def task(self) -> str:
        return f"finish {self.name}"

    def reset(self) -> Observation:
        self.steps, self.over = 0, False
        return self._observe("")

    def step(self, action: str) -> Observation:
        assert not self.over, "stepped after the end"
        self.steps += 1
        return self._observe(action)

    def _observe(self, action: str) -> Observation:
        time.sleep(self.seconds)
        if self.steps == self.breaks_at:
            raise KeyError(f"{self.name} broke at {self.steps}")
        self.over = self.steps >= self.length
        return Observation(
            text=f"{self.name}:{self.steps}:{action}",
            admissible=tuple(str(n) for n in range(0, 100, 2)) if self.lists_actions else None,
            anchor=f"{self.name}@{self.steps}".encode(),
            reward=0.25 * self.steps,
            done=self.over,
            success=self.over and self.wins,
        )


class SlowFakeGame(FakeGame):
    blocking = True


class FakeDialogue:
    """The prompt is one number a text seen, and the tokens drawn; an action is the sum of its tokens."""

    stop_token_ids = (1,)

    def __init__(self) -> None:
        self.ids: list[int] = []

    def start(self, task: str, observation: Observation) -> None:
        assert not self.ids
        self.ids = [len(task), len(observation.text)]

    def prompt_ids(self) -> np.ndarray:
        return np.array(self.ids, dtype=np.int32)

    def parse(self, action_ids: np.ndarray) -> ParsedAction:
        tokens = action_ids.tolist()
        if GARBLED in tokens:
            return ParsedAction(text="?", span=(0, 0), parsed=False)
        return ParsedAction(text=str(sum(tokens)), span=(0, len(tokens)), parsed=True)

    def advance(self, action_ids: np.ndarray, parsed: ParsedAction, observation: Observation) -> None:
        self.ids += [*action_ids.tolist(), len(observation.text)]


def episode(group: int, member: int, game: FakeGame, condition: tuple[str, ...] = ()) -> Episode:
    return Episode(
        group=group,
        member=member,
        task_id=f"id-{game.name}",
        task_type="fake",
        environment=game,
        dialogue=FakeDialogue,
        condition=condition,
    )


def values_of(trajectory: Trajectory) -> dict:
    """Everything that was played, comparable with ==."""
    turns = [
        {
            "prompt_ids": turn.prompt_ids.tolist(),
            "action_ids": turn.action_ids.tolist(),
            "behavior_logprob": turn.behavior_logprob.tolist(),
            "action_span": turn.action_span,
            "observation": turn.observation,
            "action": turn.action,
            "anchor": turn.anchor,
            "reward": turn.reward,
            "action_valid": turn.action_valid,
            "policy_version": turn.policy_version,
        }
        for turn in trajectory.turns
    ]
    return {
        "turns": turns,
        "ended": trajectory.ended,
        "success": trajectory.success,
        "error": trajectory.error,
    }
