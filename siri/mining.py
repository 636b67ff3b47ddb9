"""Skills written by the policy from its own successes: whom it is shown, what it is asked, and which answers count.

SuccessBuffer    successful plain trajectories, the newest of each task
mine()           shows some of them to the weights in the sampler, several times each; what passes `screen` is kept
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import zip_longest
from random import Random
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter

from siri.engine.distributed import World, all_gather_object
from siri.engine.errors import UserError
from siri.engine.sampling import Completion, Sampler, SampleRequest, request_seed
from siri.engine.trajectory import Trajectory
from siri.prompts import Renderer, skill_answer, skill_request
from siri.screening import Rejection, ScreenRules, parse_skill, screen, similarity
from siri.skills import Origin, words

MINING_TURN = -1
"""Stands where rollouts put the turn in the seed of a request: no answer shares a seed with an action."""
SkillRequest = Literal["short", "instruction"]
"""The request that `siri warmstart` teaches, or one in whole sentences for a model that was never taught it."""
SEEN_CHARS = 160
"""Most characters kept of an observation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MiningRules:
    """How skills are asked for."""

    num_shown: int
    """Successes shown, over all ranks."""
    num_candidates: int
    """Answers drawn for each."""
    temperature: float
    """Sampling temperature of answers."""
    max_answer_tokens: int
    """Most tokens drawn for an answer."""
    request: SkillRequest
    """How the policy is asked."""
    screen: ScreenRules
    """Which answers are kept."""

    def __post_init__(self) -> None:
        for name in ("num_shown", "num_candidates", "max_answer_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"mining.{name}: {getattr(self, name)} must be 1 or more")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"mining.temperature: {self.temperature} must be a finite number, 0 or more")
        if self.temperature == 0 and self.num_candidates > 1:
            raise UserError(
                f"mining.num_candidates: {self.num_candidates} answers would all be the same at mining.temperature: 0; "
                "set the first to 1 or raise the second"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Success:
    """A solved plain episode, as it is shown."""

    task_id: str
    task_type: str
    task: str
    start: str
    """First observation, shortened."""
    steps: tuple[tuple[str, str], ...]
    """(valid action, the observation after it, shortened; "" after the last), in order."""
    iteration: int
    group: int
    member: int

    @property
    def words(self) -> frozenset[str]:
        """Of everything in it that was read or done."""
        return frozenset(words(" ".join([self.task, self.start, *(text for step in self.steps for text in step)])))


def successes(trajectories: Iterable[Trajectory], *, iteration: int, shorten: Callable[[str], str]) -> list[Success]:
    """The successful plain ones. `shorten` is the environment's short form of an observation."""
    found = []
    for trajectory in trajectories:
        turns = trajectory.turns
        if trajectory.success and not trajectory.condition and any(turn.action_valid for turn in turns):
            seen = [*(shorten(turn.observation)[:SEEN_CHARS] for turn in turns), ""]
            success = Success(
                task_id=trajectory.task_id,
                task_type=trajectory.task_type,
                task=trajectory.task,
                start=seen[0],
                steps=tuple((turn.action, seen[i + 1]) for i, turn in enumerate(turns) if turn.action_valid),
                iteration=iteration,
                group=trajectory.group,
                member=trajectory.member,
            )
            found.append(success)
    return found


class SuccessBuffer:
    """The newest success of each task; of one iteration's, the one with the fewest steps. The oldest leave first."""

    def __init__(self, max_size: int) -> None:
        if max_size < 1:
            raise UserError(f"mining.buffer_size: {max_size} must be 1 or more")
        self.max_size = max_size
        self.seen = 0
        """Successes ever added; `len()` is the number of tasks held."""
        self._by_task: dict[str, Success] = {}

    def __len__(self) -> int:
        return len(self._by_task)

    def add(self, found: Iterable[Success]) -> None:
        """Take in the successes of one iteration, from all ranks, in any order."""
        worst_first = sorted(found, key=lambda s: (s.iteration, -len(s.steps), -s.group, -s.member))
        for success in worst_first:
            self._by_task.pop(success.task_id, None)
            self._by_task[success.task_id] = success
        for task_id in list(self._by_task)[: max(0, len(self) - self.max_size)]:
            del self._by_task[task_id]
        self.seen += len(worst_first)

    def choose(self, count: int, *, seed: int) -> list[Success]:
        """`count` of them, or all: from the task types in turn, in an order that `seed` draws; of each type the newest
        first, and of one iteration's the shortest."""
        by_type: dict[str, list[Success]] = {}
        for success in reversed(self._by_task.values()):
            by_type.setdefault(success.task_type, []).append(success)
        rng = Random(seed)
        columns = [by_type[task_type] for task_type in sorted(sorted(by_type), key=lambda _: rng.random())]
        return [success for row in zip_longest(*columns) for success in row if success is not None][:count]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, for checkpoints."""
        return {"seen": self.seen, "successes": _SUCCESSES.dump_python(tuple(self._by_task.values()), mode="json")}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], max_size: int) -> "SuccessBuffer":
        """The buffer that `as_dict` described."""
        buffer = cls(max_size)
        buffer.seen = state["seen"]
        buffer._by_task = {success.task_id: success for success in _SUCCESSES.validate_python(state["successes"])}
        return buffer


_SUCCESSES = TypeAdapter(tuple[Success, ...])


def request_ids(renderer: Renderer, success: Success, request: SkillRequest) -> np.ndarray:
    """i32[P]: the prompt that shows a success and asks for a skill. Of either prompt style: it is one message."""
    short = request == "short"
    text = skill_request(success.task, [action for action, _ in success.steps]) if short else _instruction(success)
    return np.array([*renderer.before_first, *renderer.literal(text), *renderer.before_action], np.int32)


def _instruction(success: Success) -> str:
    """The request in whole sentences, for a model that was never taught the short one."""
    steps = [
        f"[Step {number}] Action: {action}{f' Observation: {seen}' if seen else ''}"
        for number, (action, seen) in enumerate(success.steps, 1)
    ]
    return "\n".join(
        [
            "You solved a task in a text environment.",
            f"The task was to: {success.task}",
            f"At first you saw: {success.start}",
            *steps,
            "Write down one skill that will help with other tasks of this kind, where things have other numbers and "
            "other places. Answer with exactly two lines, of 30 words at most, in this form and with nothing else:",
            skill_answer("<in which situation the skill helps>", "<what to do then, in one sentence>"),
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the policy wrote when it was shown a success."""

    id: int
    """Of the request: index of the success among those shown x answers a success + number of the answer."""
    text: str
    """Up to the end-of-turn token; special tokens in it do not show."""
    plain: bool
    """It has no special token."""
    complete: bool
    """It ended by itself."""


def read_answer(renderer: Renderer, completion: Completion) -> Answer:
    ids = renderer.without_end(completion.action_ids)
    return Answer(
        id=completion.id,
        text=renderer.decode(ids),
        plain=renderer.special_ids.isdisjoint(ids.tolist()),
        complete=completion.finished_by == "stop",
    )


def judge(
    answer: Answer,
    rules: ScreenRules,
    *,
    known: Iterable[tuple[str, str]],
    count_tokens: Callable[[str], int],
    vocabulary: Set[str],
) -> tuple[str, str] | Rejection:
    """`screen`, for text that came in tokens."""
    if not answer.complete:
        return Rejection.TOO_LONG
    if not answer.plain:
        return Rejection.NOT_PLAIN_TEXT
    return screen(answer.text, rules, known=known, count_tokens=count_tokens, vocabulary=vocabulary)


def _draw(sampler: Sampler, requests: Sequence[SampleRequest]) -> list[Completion]:
    for request in requests:
        sampler.submit(request)
    completions: list[Completion] = []
    while len(completions) < len(requests):
        completions += sampler.poll()
    return completions


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What goes into the bank."""

    condition: str
    strategy: str
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """A skill that was written again from another success: a duplicate, and one more witness."""

    index: int
    """Of the skill it is most like, in the known ones followed by the new candidates."""
    task_id: str
    """Task of the success."""


def mine(
    sampler: Sampler,
    renderer: Renderer,
    buffer: SuccessBuffer,
    *,
    known: Iterable[tuple[str, str]],
    rules: MiningRules,
    run_seed: int,
    iteration: int,
    policy_version: int,
    max_prompt_tokens: int,
    world: World | None = None,
) -> tuple[list[Candidate], list[Repeat], dict[str, int]]:
    """Candidates written by the weights in the sampler, known skills and candidates that were written again, and
    counts: successes too long to show; answers drawn, kept, and dropped for what.

    `known` are condition and strategy of every skill of the bank, retired ones included. Each rank asks about its share
    of the successes, and all return the same. A success whose prompt has more than `max_prompt_tokens` is left out, and
    counted as `unshown`.
    Raises StaleWeightsError if the sampler does not hold `policy_version`; nothing that the model writes raises.
    """
    world = world or World()
    seed = request_seed(run_seed=run_seed, step=iteration, group=-1, member=-1, turn=MINING_TURN)
    shown = buffer.choose(rules.num_shown, seed=seed)
    requests = [
        SampleRequest(
            id=index * rules.num_candidates + number,
            prompt_ids=prompt_ids,
            seed=request_seed(run_seed=run_seed, step=iteration, group=index, member=number, turn=MINING_TURN),
            temperature=rules.temperature,
            max_tokens=rules.max_answer_tokens,
            stop_token_ids=renderer.stop_token_ids,
            policy_version=policy_version,
        )
        for index in range(world.rank, len(shown), world.size)
        if len(prompt_ids := request_ids(renderer, shown[index], rules.request)) <= max_prompt_tokens
        for number in range(rules.num_candidates)
    ]
    own = [read_answer(renderer, completion) for completion in _draw(sampler, requests)]
    answers = sorted((answer for rank in all_gather_object(world, own) for answer in rank), key=lambda a: a.id)

    taken = list(known)
    # Every request is answered, so that no rank has to tell the others what it left out.
    counts = Counter({"unshown": len(shown) - len(answers) // rules.num_candidates, "drawn": len(answers)})
    candidates: list[Candidate] = []
    repeats: list[Repeat] = []
    for answer in answers:
        success = shown[answer.id // rules.num_candidates]
        skill = judge(
            answer,
            rules.screen,
            known=taken,
            count_tokens=lambda line: len(renderer.literal(line)),
            vocabulary=success.words,
        )
        if isinstance(skill, Rejection):
            counts[skill.value] += 1
            if skill is Rejection.DUPLICATE:
                repeats.append(Repeat(index=closest(answer.text, taken), task_id=success.task_id))
            continue
        origin = origin_of(success, iteration=iteration, policy_version=policy_version)
        candidates.append(Candidate(condition=skill[0], strategy=skill[1], origin=origin))
        taken.append(skill)
    counts["kept"] = len(candidates)
    names = ("unshown", "drawn", "kept", *(reason.value for reason in Rejection))
    return candidates, repeats, {name: counts[name] for name in names}


def origin_of(success: Success, *, iteration: int, policy_version: int) -> Origin:
    """Of a skill that `policy_version` wrote in `iteration` when it was shown this success."""
    return Origin(
        task_id=success.task_id,
        task_type=success.task_type,
        iteration=iteration,
        policy_version=policy_version,
        played=success.iteration,
        group=success.group,
        member=success.member,
    )


def closest(text: str, known: Sequence[tuple[str, str]]) -> int:
    """Index of the known skill (condition, strategy) that the one in `text` is most like; of equals the first."""
    skill = parse_skill(text)
    assert not isinstance(skill, Rejection), "a duplicate is a skill"
    return max(range(len(known)), key=lambda index: similarity(known[index], skill))
