"""Of the files of a run, what the report reads. Fields have the files' names; what else a file holds is ignored."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """One episode of a pair."""

    success: bool
    ended: str
    turns: tuple[tuple[str, str, bool], ...]
    """(observation, action, whether the action was valid), in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A line of samples.jsonl: one task, played without and with skills, in the iteration `step`."""

    step: int
    task_id: str
    task: str
    skills: tuple[str, ...]
    """As the prompt showed them."""
    delta: float
    """Mean reward of the group's skill half less that of its plain half."""
    plain: Half
    guided: Half


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A success rate with its Wilson 95% interval."""

    success_rate: float | None
    """None without episodes."""
    episodes: int
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated(Rate):
    """An evaluation on the plain prompt."""

    split: str
    split_hash: str
    mean_turns: float
    errors: int
    by_type: dict[str, Rate]
    mean_score: float | None = None
    """None where the environment gives no scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseBegan:
    """A change of phase, before iteration `iteration`."""

    iteration: int
    phase: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of summary.json, what the page shows. The names are the file's."""

    iterations: int
    eval: dict[str, Evaluated | None]
    wall_seconds: dict[str, float]
    tokens_per_second: dict[str, float]
    device: str
    ranks: int
    versions: dict[str, str]
    git_commit: str | None
    env_steps: int = 0
    phases: tuple[PhaseBegan, ...] = ()
    tokens_internalised: float = 0.0
    saved: str | None = None
    """When the last checkpoint was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceState:
    transitions: tuple[PhaseBegan, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointed:
    """Of the newest checkpoint's state, what a page of an unfinished run shows."""

    commit: str | None = None
    """Of the checkout that began the run."""
    step: int = 0
    evaluations: dict[str, Evaluated | None] = field(default_factory=dict)
    guidance: GuidanceState = GuidanceState()


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFile:
    state: Checkpointed
