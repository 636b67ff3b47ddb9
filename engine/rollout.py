"""Episodes played to their end: each environment is stepped as soon as its own tokens are drawn.

No lock step, and nothing is prompted, sampled or stepped for an episode that is over. What an episode becomes depends
on its own seeds, prompts and environment only: with a sampler that keeps its contract, not on how many others are live,
in which order they were admitted, or how fast their environments are.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue

import numpy as np

from siri.engine.dialogue import Dialogue, ParsedAction
from siri.engine.environment import Environment, Observation
from siri.engine.sampling import Completion, Sampler, SampleRequest, request_seed
from siri.engine.trajectory import Ended, Trajectory, Turn

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One game to play."""

    group: int
    """Index of the task group in this iteration."""
    member: int
    """Index inside the group; no two episodes of a call share it and `group`."""
    task_id: str
    task_type: str
    environment: Environment
    """Not used by anything else during the call. With a true attribute `blocking` (a proxy of another process), its
    `reset` and `step` run in threads, so that nobody waits for them."""
    dialogue: Callable[[], Dialogue]
    """Makes the dialogue, when the episode is admitted."""
    condition: tuple[str, ...] = ()
    """Ids of the skills the dialogue shows."""
    seed_member: int | None = None
    """With `group` it decides the seeds; None: `member`. Two episodes of a group that are to differ in their prompts
    only, and in nothing that is drawn, are given the same."""
    twin: Callable[[], Dialogue] | None = None
    """Makes a second dialogue that is shown the same episode. Nothing is sampled from it: its prompts are recorded as
    `Turn.twin_prompt_ids`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a call to `collect` is."""

    total: int
    finished: int = 0
    live: int = 0
    """Episodes admitted and not finished."""
    successes: int = 0
    errors: int = 0
    """Episodes lost to their environment."""
    turns: int = 0
    """Turns of the finished episodes."""
    tokens: int = 0
    """Tokens drawn in the finished episodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    max_turns: int
    max_prompt_tokens: int
    max_action_tokens: int
    temperature: float
    run_seed: int
    step: int
    policy_version: int


def collect(
    sampler: Sampler,
    episodes: Sequence[Episode],
    *,
    max_turns: int,
    max_prompt_tokens: int,
    max_action_tokens: int,
    temperature: float,
    run_seed: int,
    step: int,
    policy_version: int,
    max_concurrent: int = 256,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Trajectory]:
    """Play every episode; the trajectories come in the order of `episodes`.

    `run_seed` and `step` enter every request's seed (`request_seed`). An episode whose next prompt is longer than
    `max_prompt_tokens` ends there, and so it does if its twin's is (which then could not be trained on); the sampler's
    context must hold `max_prompt_tokens + max_action_tokens`. At most
    `max_concurrent` episodes are live; others follow as these end. `on_progress` is called when episodes have ended.
    Raises StaleWeightsError if the sampler does not hold `policy_version`. An exception of an environment is not
    raised: that episode ends as `Ended.ENV_ERROR`, and the first one of a call is logged with its traceback.
    """
    rules = _Rules(
        max_turns=max_turns,
        max_prompt_tokens=max_prompt_tokens,
        max_action_tokens=max_action_tokens,
        temperature=temperature,
        run_seed=run_seed,
        step=step,
        policy_version=policy_version,
    )
    waiting = deque(enumerate(episodes))
    live: dict[int, _Game] = {}
    sampling: set[int] = set()
    finished: dict[int, Trajectory] = {}
    progress = Progress(total=len(episodes))
    stage = _Stage(max_concurrent)
    try:
        while waiting or live:
            while waiting and len(live) < max_concurrent:
                index, episode = waiting.popleft()
                live[index] = game = _Game(episode, rules)
                stage.play(index, episode.environment, game.reset)
            for completion in sampler.poll() if sampling else ():
                sampling.remove(completion.id)
                game = live[completion.id]
                stage.play(completion.id, game.episode.environment, game.step, game.parse(completion))
            before = progress
            for index, answer in stage.answers(wait=not sampling):
                ended = live[index].receive(answer)
                if ended is None:
                    sampler.submit(live[index].request(index))
                    sampling.add(index)
                else:
                    finished[index] = live.pop(index).trajectory(ended)
                    progress = _counted(progress, finished[index], live=len(live))
            if on_progress is not None and progress is not before:
                on_progress(progress)
    finally:
        stage.close()
    return [finished[index] for index in range(len(episodes))]


class _Game:
    """A live episode: its dialogue and the twin's, its turns so far, and the turn in the making."""

    def __init__(self, episode: Episode, rules: _Rules) -> None:
        self.episode = episode
        self.rules = rules
        self.dialogue = episode.dialogue()
        self.twin = None if episode.twin is None else episode.twin()
        self.task = ""
        self.turns: list[Turn] = []
        self.observation: Observation | None = None
        self.prompt_ids: np.ndarray = np.empty(0, np.int32)
        self.twin_prompt_ids: np.ndarray | None = None
        self.drawn: tuple[Completion, ParsedAction] | None = None
        self.error = ""

    def reset(self) -> Observation:
        observation = self.episode.environment.reset()
        self.task = self.episode.environment.task
        return observation

    def step(self, action: str) -> Observation:
        return self.episode.environment.step(action)

    def request(self, index: int) -> SampleRequest:
        member = self.episode.member if self.episode.seed_member is None else self.episode.seed_member
        seed = request_seed(
            run_seed=self.rules.run_seed,
            step=self.rules.step,
            group=self.episode.group,
            member=member,
            turn=len(self.turns),
        )
        return SampleRequest(
            id=index,
            prompt_ids=self.prompt_ids,
            seed=seed,
            temperature=self.rules.temperature,
            max_tokens=self.rules.max_action_tokens,
            stop_token_ids=self.dialogue.stop_token_ids,
            policy_version=self.rules.policy_version,
        )

    def parse(self, completion: Completion) -> str:
        """The action for the environment. One that is not admissible is given to it too: it has an answer to that."""
        parsed = self.dialogue.parse(completion.action_ids)
        self.drawn = completion, parsed
        return parsed.text

    def receive(self, answer: Observation | Exception) -> Ended | None:
        """Take the environment's answer; says how the episode ended, or None if it goes on with a new prompt."""
        if isinstance(answer, Exception):
            self.error = f"{type(answer).__name__}: {answer}"
            return Ended.ENV_ERROR
        if self.drawn is not None:
            self.turns.append(self._turn(*self.drawn, answer))
        self.observation = answer
        if answer.done:
            return Ended.DONE
        if len(self.turns) >= self.rules.max_turns:
            return Ended.MAX_TURNS
        self.prompt_ids = longest = self._next_prompt(self.dialogue, answer)
        if self.twin is not None:
            self.twin_prompt_ids = self._next_prompt(self.twin, answer)
            longest = max(longest, self.twin_prompt_ids, key=len)
        return Ended.PROMPT_TOO_LONG if len(longest) > self.rules.max_prompt_tokens else None

    def _next_prompt(self, dialogue: Dialogue, answer: Observation) -> np.ndarray:
        if self.drawn is None:
            dialogue.start(self.task, answer)
        else:
            completion, parsed = self.drawn
            dialogue.advance(completion.action_ids, parsed, answer)
        return np.asarray(dialogue.prompt_ids(), dtype=np.int32)

    def _turn(self, completion: Completion, parsed: ParsedAction, answer: Observation) -> Turn:
        before = self.observation
        assert before is not None, "an action comes after an observation"
        return Turn(
            prompt_ids=self.prompt_ids,
            action_ids=completion.action_ids,
            behavior_logprob=completion.logprob,
            action_span=parsed.span,
            observation=before.text,
            action=parsed.text,
            anchor=before.anchor,
            reward=answer.reward,
            action_valid=parsed.parsed and _accepted(parsed.text, before, answer),
            policy_version=self.rules.policy_version,
            twin_prompt_ids=self.twin_prompt_ids,
        )

    def trajectory(self, ended: Ended) -> Trajectory:
        return Trajectory(
            group=self.episode.group,
            member=self.episode.member,
            task_id=self.episode.task_id,
            task_type=self.episode.task_type,
            task=self.task,
            condition=self.episode.condition,
            turns=tuple(self.turns),
            success=self.observation is not None and self.observation.success,
            score=None if self.observation is None else self.observation.score,
            ended=ended,
            error=self.error,
        )


class _Stage:
    """Runs environments, at once or in threads, and gathers their answers."""

    def __init__(self, max_concurrent: int) -> None:
        self._answers: SimpleQueue[tuple[int, Observation | Exception]] = SimpleQueue()
        # Threads start only when there is work for them; one per live episode, so that a slow worker process holds up
        # nobody but its own episodes.
        self._threads = ThreadPoolExecutor(max_concurrent, thread_name_prefix="environment")
        self._logged = False

    def play(self, index: int, environment: Environment, call: Callable[..., Observation], *args: str) -> None:
        if getattr(environment, "blocking", False):
            self._threads.submit(self._answer, index, call, *args)
        else:
            self._answer(index, call, *args)

    def _answer(self, index: int, call: Callable[..., Observation], *args: str) -> None:
        try:
            answer: Observation | Exception = call(*args)
        except Exception as error:  # whatever foreign code raises: it costs one episode, not the run
            answer = error
            if not self._logged:
                self._logged = True
                logger.warning("an environment raised; its episode ends as env_error", exc_info=error)
        self._answers.put((index, answer))

    def answers(self, *, wait: bool) -> list[tuple[int, Observation | Exception]]:
        """What has been answered so far; with `wait`, at least one answer."""
        ready = [self._answers.get()] if wait else []
        while not self._answers.empty():
            ready.append(self._answers.get())
        return ready

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _accepted(action: str, before: Observation, after: Observation) -> bool:
    """The environment's own word on the action, or else whether it was listed where there is a list."""
    if after.action_valid is not None:
        return after.action_valid
    return before.admissible is None or action in before.admissible


def _counted(progress: Progress, ended: Trajectory, *, live: int) -> Progress:
    return replace(
        progress,
        finished=progress.finished + 1,
        live=live,
        successes=progress.successes + ended.success,
        errors=progress.errors + (ended.ended is Ended.ENV_ERROR),
        turns=progress.turns + len(ended.turns),
        tokens=progress.tokens + sum(len(turn.action_ids) for turn in ended.turns),
    )
