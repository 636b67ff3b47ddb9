"""The skill bank: what the policy wrote down, what each skill was worth when tried, and what became of it.

    candidate -> active     n >= n_eval evaluations and mean utility - margin > promote_above
    candidate -> retired    n >= n_eval and mean + margin < retire_below; or n >= max_eval without promotion
    active    -> retired    mean + margin < retire_below
    either    -> retired    more than max_size are alive: the lowest mean first (untested: 0), of equal ones the oldest

Utility is the mean of `Delta_g = mean(R | skill half of g) - mean(R | plain half of g)` over the groups that showed the
skill (ALGORITHM section 1.1). The margin is `confidence` standard errors of that mean: without one, 45% of skills that
do nothing would have been promoted in a run of 13 iterations, and those that were had a mean of 0.13 before and -0.03
after. With one, looking after each of the evaluations 6 to 18, luck still promotes 36% of such skills, and 98% of those
worth +0.2 (deviation of an evaluation 0.3): promotion screens and proves nothing, so the gate of internalisation asks
the group again. Retired skills stay, with their history, and are never used again. Of equal means the oldest goes, as
it has had the longest chance to be tried: if the newest went, a bank full of skills that match no task would never take
in another. Nothing depends on the order in which groups are told of, or on the number of ranks.
"""

import importlib
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any, Literal

from pydantic import TypeAdapter

from siri.engine.errors import UserError

Status = Literal["candidate", "active", "retired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a skill comes from: the trajectory that the policy was shown when it wrote it."""

    task_id: str
    task_type: str
    iteration: int
    """In which the skill was written."""
    policy_version: int
    """Of the weights that wrote it."""
    played: int
    """Iteration of the trajectory."""
    group: int
    """Task group of the trajectory in its iteration."""
    member: int
    """Index of the trajectory in that group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A task group that was played with skills in one half and without in the other: an evaluation of those skills."""

    iteration: int
    group: int
    """Index of the group in this iteration."""
    task_id: str
    skills: tuple[str, ...]
    """Ids of the skills shown in the skill half."""
    skill_mean: float
    """Mean total reward of the skill half."""
    plain_mean: float
    """Mean total reward of the plain half."""

    @property
    def delta(self) -> float:
        """Treatment effect, in units of reward."""
        return self.skill_mean - self.plain_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusChange:
    """When and why a skill got a status."""

    iteration: int
    status: Status
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Skill:
    """condition -> strategy, with everything that is known of it."""

    id: str
    """`s0001`, `s0002`, ... in the order of being added."""
    condition: str
    strategy: str
    origin: Origin
    changes: tuple[StatusChange, ...]
    """Oldest first; the last one holds."""
    witnesses: tuple[str, ...] = ()
    """Tasks of the other successes that the policy wrote the same skill from."""
    evaluations: tuple[Trial, ...] = ()
    """In (iteration, group) order."""
    mean: float = 0.0
    """Mean delta; 0 if untested."""
    sum_squares: float = 0.0
    """Sum of squared deviations of the deltas from their mean (Welford)."""

    @property
    def status(self) -> Status:
        return self.changes[-1].status

    @property
    def support(self) -> int:
        """Tasks whose success it was written from."""
        return 1 + len(self.witnesses)

    @property
    def count(self) -> int:
        """Number of evaluations."""
        return len(self.evaluations)

    @property
    def variance(self) -> float | None:
        """Unbiased; None below two evaluations."""
        return self.sum_squares / (self.count - 1) if self.count > 1 else None

    def evaluated(self, trial: Trial) -> "Skill":
        """With one more evaluation (Welford's update)."""
        off = trial.delta - self.mean
        mean = self.mean + off / (self.count + 1)
        squares = self.sum_squares + off * (trial.delta - mean)
        return replace(self, evaluations=(*self.evaluations, trial), mean=mean, sum_squares=squares)

    def changed(self, iteration: int, status: Status, reason: str) -> "Skill":
        change = StatusChange(iteration=iteration, status=status, reason=reason)
        return replace(self, changes=(*self.changes, change))


@dataclass(frozen=True, slots=True, kw_only=True)
class BankRules:
    """When a skill is promoted and when it is given up."""

    n_eval: int
    """Evaluations before a verdict."""
    max_eval: int
    """Evaluations after which a candidate that was not promoted is retired."""
    promote_above: float
    """Mean utility above which a candidate becomes active, in units of reward."""
    retire_below: float
    """Mean utility below which a skill is retired."""
    max_size: int
    """Most candidates and active skills together."""
    confidence: float = 0.0
    """Standard errors by which a mean must be beyond `promote_above` or `retire_below`; 0: the mean decides alone."""

    def __post_init__(self) -> None:
        lowest = {"n_eval": 1, "max_size": 1, "confidence": 0, "promote_above": -math.inf, "retire_below": -math.inf}
        for name, least in lowest.items():
            value = getattr(self, name)
            if not math.isfinite(value) or value < least:
                rule = "a finite number, in units of reward" if least == -math.inf else f"{least} or more"
                raise UserError(f"skills.{name}: {value} must be {rule}")
        for low, high in (("n_eval", "max_eval"), ("retire_below", "promote_above")):
            if getattr(self, low) > getattr(self, high):
                relation = f"{getattr(self, low)} is above skills.{high}: {getattr(self, high)}"
                raise UserError(f"skills.{low}: {relation}; lower the first or raise the second")


class SkillBank:
    """Every skill ever added, alive or retired. Changes by `add` and `record` only."""

    def __init__(self, rules: BankRules) -> None:
        self.rules = rules
        self.version = 0
        """Rises by one with every call that changes anything."""
        self._skills: dict[str, Skill] = {}

    @property
    def skills(self) -> tuple[Skill, ...]:
        """All of them, oldest first."""
        return tuple(self._skills.values())

    @property
    def live(self) -> tuple[Skill, ...]:
        """Candidates and active skills, oldest first."""
        return tuple(skill for skill in self._skills.values() if skill.status != "retired")

    def __getitem__(self, id: str) -> Skill:
        return self._skills[id]

    def counts(self) -> dict[Status, int]:
        """How many skills have each status."""
        statuses = [skill.status for skill in self._skills.values()]
        return {status: statuses.count(status) for status in ("candidate", "active", "retired")}

    def add(self, condition: str, strategy: str, origin: Origin) -> Skill:
        """A new candidate; in a full bank the lowest mean makes room, which can be the new one itself."""
        mined = StatusChange(iteration=origin.iteration, status="candidate", reason="mined")
        id = f"s{len(self._skills) + 1:04d}"
        self._skills[id] = Skill(id=id, condition=condition, strategy=strategy, origin=origin, changes=(mined,))
        self._make_room(origin.iteration)
        self.version += 1
        return self._skills[id]

    def add_witness(self, id: str, task_id: str) -> None:
        """The skill was written again, from a success in this task. A task counts once."""
        skill = self._skills[id]
        if task_id not in (skill.origin.task_id, *skill.witnesses):
            self._skills[id] = replace(skill, witnesses=(*skill.witnesses, task_id))
            self.version += 1

    def retrieve(self, task: str, *, k: int, explore: float, seed: int) -> tuple[Skill, ...]:
        """The skills to show for a task: at most `k >= 1` live ones, the best match first; none where none matches.

        BM25 of `task` over the conditions; only skills that share a word with the task are considered, also when
        exploring: a skill is tried where it would be used. Equal scores: the skill found in the most tasks first, as
        means of few evaluations say less (one of a group of 8 has a standard deviation of 0.3: the best of many means
        are luck); then active skills, by their mean; then the older. With probability `explore` a candidate with fewer
        than `n_eval` evaluations, drawn uniformly from those that match, is shown, and one of the others, drawn
        uniformly too, is not: skills that are only ever shown together share one verdict. `seed` alone decides all
        draws.
        """
        assert k >= 1, "without skills there is nothing to retrieve"
        live = self.live
        scores = bm25(task, [skill.condition for skill in live])
        matches = [(score, skill) for score, skill in zip(scores, live, strict=True) if score > 0]
        ranked = [skill for _, skill in sorted(matches, key=lambda match: (-match[0], *_standing(match[1])))]
        untested = [skill for skill in ranked if skill.count < self.rules.n_eval]  # so, a candidate
        rng = Random(seed)
        if untested and rng.random() < explore:
            tried = untested[int(rng.random() * len(untested))]
            others = [skill for skill in ranked if skill is not tried][:k]
            left_out = others[int(rng.random() * len(others))] if others else None
            return (*[skill for skill in others if skill is not left_out], tried)
        return tuple(ranked[:k])

    def record(self, trials: Iterable[Trial], *, iteration: int) -> tuple[Skill, ...]:
        """Take in all trials of one iteration, from all ranks, in any order; then one pass of the life cycle.

        Call it once an iteration. A skill that was retired meanwhile remembers its trial too. Returns the skills whose
        status changed, oldest first.
        """
        before = self._skills.copy()
        shown = [(trial, id) for trial in trials for id in trial.skills]
        for trial, id in sorted(shown, key=lambda pair: (pair[0].group, pair[1])):
            skill = self._skills[id]
            assert trial.iteration == iteration, "a trial of another iteration"
            assert all((past.iteration, past.group) < (iteration, trial.group) for past in skill.evaluations[-1:])
            assert math.isfinite(trial.delta), "a half without trajectories is no trial"
            self._skills[id] = skill.evaluated(trial)
        for skill in self.live:
            if verdict := self._verdict(skill):
                self._skills[skill.id] = skill.changed(iteration, *verdict)
        self._make_room(iteration)
        self.version += self._skills != before
        return tuple(skill for skill in self._skills.values() if skill.status != before[skill.id].status)

    def _verdict(self, skill: Skill) -> tuple[Status, str] | None:
        """The status that the evaluations call for, with the reason; None to leave it."""
        rules, mean, count, margin = self.rules, skill.mean, skill.count, self._margin(skill)
        if count < rules.n_eval:
            return None
        less, more = (f" {sign} {margin:.2g}" if rules.confidence else "" for sign in "-+")
        if mean + margin < rules.retire_below:
            return "retired", f"mean utility {mean:.4g}{more} < {rules.retire_below:g} after {count} evaluations"
        if skill.status == "active":
            return None
        if mean - margin > rules.promote_above:
            return "active", f"mean utility {mean:.4g}{less} > {rules.promote_above:g} after {count} evaluations"
        if count >= rules.max_eval:
            return "retired", f"not promoted in {count} evaluations, mean utility {mean:.4g}"
        return None

    def _margin(self, skill: Skill) -> float:
        """`confidence` standard errors of the mean utility; infinite where a single evaluation says nothing of them."""
        if self.rules.confidence == 0:
            return 0.0
        if skill.variance is None:
            return math.inf
        return self.rules.confidence * math.sqrt(skill.variance / skill.count)

    def _make_room(self, iteration: int) -> None:
        excess = len(self.live) - self.rules.max_size
        for skill in sorted(self.live, key=lambda skill: skill.mean)[: max(0, excess)]:
            reason = f"lowest mean utility, {skill.mean:.4g}, of more than {self.rules.max_size} skills"
            self._skills[skill.id] = skill.changed(iteration, "retired", reason)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, for checkpoints and for people to read; `from_dict` makes the same bank of it."""
        fields = _SKILLS.dump_python(self.skills, mode="json")
        return {"version": self.version, "skills": list(map(_readable, self.skills, fields))}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], rules: BankRules) -> "SkillBank":
        """The bank that `as_dict` described. Raises UserError if `state` does not describe one."""
        bank = cls(rules)
        try:
            bank.version = int(state["version"])
            skills = _SKILLS.validate_python(state["skills"])
            _check(skills)
        except (KeyError, TypeError, ValueError) as error:
            what = f"this is not a skill bank as runs write it ({str(error).splitlines()[0]})"
            raise UserError(f"skills: {what}; take one from a checkpoint, or start a new run") from error
        bank._skills = {skill.id: skill for skill in skills}
        return bank


def _standing(skill: Skill) -> tuple[int, bool, float]:
    """The lower, the sooner it is shown."""
    active = skill.status == "active"
    return (-skill.support, not active, -skill.mean if active else 0.0)


_SKILLS = TypeAdapter(tuple[Skill, ...])


def _check(skills: Sequence[Skill]) -> None:
    """Raises ValueError for what no run writes: texts become lines of a prompt, and ids tell skills apart."""
    ids: set[str] = set()
    for skill in skills:
        if skill.id in ids:
            raise ValueError(f"two skills have the id {skill.id!r}")
        ids.add(skill.id)
        if not skill.changes:
            raise ValueError(f"changes of {skill.id!r} is empty, so it has no status")
        for name in ("condition", "strategy"):
            text = getattr(skill, name)
            if not text.strip() or not text.isprintable():
                raise ValueError(f"{name} of {skill.id!r} is {text[:60]!r}, not one line of plain text")


def _readable(skill: Skill, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a skill and what follows from them, the most telling first."""
    for trial, described in zip(skill.evaluations, fields["evaluations"], strict=True):
        described["delta"] = trial.delta
    head = {name: fields[name] for name in ("id", "condition", "strategy")}
    derived = {"status": skill.status, "count": skill.count, "mean": skill.mean, "variance": skill.variance}
    return head | derived | fields


def effect_since_promotion(skills: Iterable[Skill]) -> tuple[float | None, int]:
    """(mean Delta, number) of the task groups that showed a skill after it had been promoted; a group counts once.

    A skill is promoted for a high mean, so that mean overstates what it is worth. This one was not chosen by.
    """
    groups: dict[tuple[int, int], float] = {}
    for skill in skills:
        for promoted in (change.iteration for change in skill.changes if change.status == "active"):
            groups |= {(t.iteration, t.group): t.delta for t in skill.evaluations if t.iteration > promoted}
    return (sum(groups.values()) / len(groups) if groups else None), len(groups)


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return re.findall(r"[^\W_]+", text.casefold())


def bm25(query: str, texts: Sequence[str]) -> list[float]:
    """BM25 (Lucene's variant, k1 1.5, b 0.75) of each text, 0 where it shares no word with `query`.

    Lucene's inverse document frequency is above 0 however many texts have the word. English function words do not
    count: among three texts the one "a" would outweigh a noun that two of them have.
    """
    bm25s = _without_numba("bm25s")
    stopwords = bm25s.stopwords.STOPWORDS_EN_PLUS
    contents = [[word for word in words(text) if word not in stopwords] for text in texts]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(word for text in contents for word in text))}
    asked = [vocabulary[word] for word in dict.fromkeys(words(query)) if word in vocabulary]
    if not asked:
        return [0.0] * len(texts)
    # Numbered here, not by the library, which numbers a set: in another order in each process.
    numbered = [[vocabulary[word] for word in text] for text in contents]
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75, dtype="float64")
    index.index((numbered, vocabulary), create_empty_token=False, show_progress=False)
    return [float(score) for score in index.get_scores_from_ids(asked)]


@cache
def _without_numba(name: str) -> Any:
    """Import a module that would import numba (which vLLM brings), without it.

    numba takes 3 s, and with its llvmlite in the process vLLM 0.32 does not start: it looks through the attributes of
    every loaded module, and trips over llvmlite's.
    """
    masked = "numba" not in sys.modules
    if masked:
        sys.modules["numba"] = None  # type: ignore[assignment]  # Python's way to say that there is none
    try:
        return importlib.import_module(name)
    finally:
        if masked:
            del sys.modules["numba"]
