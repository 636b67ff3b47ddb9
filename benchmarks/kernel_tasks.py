"""What the kernels are measured on, and the float64 truth of it.

Hidden states and head are those of SmolLM2-135M reading household games, where its package is installed and the shape
is its own. For other heads they are a stand-in, and the results say so: random rows of the scale of token embeddings,
hidden states that lean to their targets, so that the softmax is as peaked as a language model's. (On a flat softmax
cut-cross-entropy, for one, would skip nearly all of its backward pass.)

Legend: T tokens, H hidden, V vocabulary, N rows of `gigpo_advantage`.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import count

import torch
import torch.nn.functional as F
from gigpo_incumbent import Rows, careful, make_rows
from torch import Tensor

from siri.engine.errors import UserError
from siri.envs.household import HouseholdEnv
from siri.envs.household.experts import SearchingExpert
from siri.envs.household.generator import generate_game
from siri.shipped import resolve

SPREAD = 2.5
"""Standard deviation of a stand-in's logits, about that of a small language model's."""
LEAN = (4.0, 10.0)
"""How far a stand-in's target stands out, in such deviations: log-probs from about -6 to 0, -1 on average."""
SEQUENCES = 16
"""One advantage a sequence: all that Liger's GRPO loss can express."""
KL_COEF, ENTROPY_COEF = 0.05, 0.01
"""Of a policy loss with both: so large that a gradient without one of them would be off by a percent."""
CHECKPOINT_TOKENS = {"cpu": 2048, "cuda": 8192}
WINDOW = 512
TRUTH_ROWS = 256
"""Rows of float64 logits at a time: 311 MB on the largest head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One comparison."""

    name: str
    op: str
    tokens: int
    """T, or N."""
    width: int = 576
    vocabulary: int = 49152
    modes: tuple[str, ...] = ("both",)
    """forward (no gradient), both (forward and backward)"""
    kept: float = 1.0
    """Share of tokens that are trained; the others have weight 0."""
    divergence: str = "nll"
    entropy: bool = False
    """`linear_logprob` gives the entropy too; `linear_policy_loss` has a KL and an entropy term."""
    parity: bool = False
    """`gigpo_advantage` by the incumbent's rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The arguments of the ops over a vocabulary. Vectors [T] in float32."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    upstream: Tensor
    """Gradient of a loss by the log-probs; [T, 2] by log-prob and entropy."""
    advantage: Tensor
    """One value a sequence."""
    old_logprob: Tensor
    ref_logprob: Tensor
    """Of a policy loss with a KL term."""
    token_weight: Tensor
    """0 or 1"""
    teacher_hidden: Tensor | None
    logits: Tensor | None
    """[T, V], of `selective_logprob`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A case with its inputs and its truth."""

    case: Case
    device: torch.device
    tokens: Tokens | None
    rows: Rows | None
    leaves: tuple[Tensor, ...]
    upstream: Tensor | None
    value: Tensor
    """f64: log-probs [T], with entropies [T, 2], a loss, or advantages [N]; NaN where nothing is claimed."""
    gradients: tuple[Tensor, ...]
    """f64, of `leaves`."""
    source: str
    """Where the inputs come from."""

    def gemms(self, mode: str) -> int:
        """Projections of T x H x V that the op cannot do without."""
        if self.tokens is None or self.tokens.logits is not None:
            return 0
        return (1 if mode == "forward" else 3) + (self.tokens.teacher_hidden is not None)

    def flops(self, mode: str) -> float:
        kept = round(self.case.tokens * self.case.kept)
        return 2.0 * self.gemms(mode) * kept * self.case.width * self.case.vocabulary


def tokens_of(task: Task) -> Tokens:
    """The inputs of a task over a vocabulary."""
    assert task.tokens is not None
    return task.tokens


def objective(case: Case, t: Tokens, z: Tensor, rows: slice, teacher_z: Tensor | None) -> Tensor:
    """The op as anybody would write it, from float logits z [n, V] of some rows: log-probs [n], with entropies [n, 2],
    or their share of the loss."""
    log_s = torch.log_softmax(z, dim=-1)
    logprob = log_s.gather(1, t.targets[rows, None]).squeeze(1)
    entropy = -(log_s.exp() * log_s).sum(-1) if case.entropy else None
    if case.op in ("linear_logprob", "selective_logprob"):
        return logprob if entropy is None else torch.stack([logprob, entropy], dim=-1)
    if case.op == "linear_policy_loss":
        a, ratio = t.advantage[rows], (logprob - t.old_logprob[rows]).exp()
        loss = torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.2))
        loss = torch.where(a < 0, torch.minimum(loss, -3.0 * a), loss)
        if entropy is not None:
            to_ref = t.ref_logprob[rows] - logprob
            loss = loss + KL_COEF * (to_ref.exp() - to_ref - 1) - ENTROPY_COEF * entropy
        return (t.token_weight[rows] * loss).sum() / t.token_weight.sum()
    if teacher_z is None:
        return -(t.token_weight[rows] * logprob).sum() / len(t.targets)
    log_t = torch.log_softmax(teacher_z, dim=-1)
    return divergence(case.divergence, log_s, log_t) / len(t.targets)


def divergence(name: str, log_s: Tensor, log_t: Tensor) -> Tensor:
    """Of student and teacher, summed over the rows."""
    if name != "jsd":
        reached, start = (log_s, log_t) if name == "forward_kl" else (log_t, log_s)
        return F.kl_div(reached, start, log_target=True, reduction="sum")
    log_m = torch.logaddexp(log_s, log_t) - math.log(2)
    halves = [F.kl_div(log_m, log_p, log_target=True, reduction="sum") for log_p in (log_s, log_t)]
    return (halves[0] + halves[1]) / 2


def make_task(case: Case, device: torch.device, dtype: torch.dtype) -> Task:
    """Inputs and truth. The leaves require a gradient."""
    if case.op == "gigpo_advantage":
        rows = make_rows(case.tokens)
        return Task(
            case=case, device=device, tokens=None, rows=rows.to(device), leaves=(), upstream=None,
            value=careful(rows, own_rule=not case.parity).to(device), gradients=(),
            source="made up: trajectories of 5 to 50 steps, 8 to a task group",
        )  # fmt: skip
    found = checkpoint(device.type) if (case.width, case.vocabulary) == (576, 49152) else None
    if found is not None and case.tokens <= len(found[0]):
        hidden, weight, targets = found
        hidden, targets, source = hidden[: case.tokens], targets[: case.tokens], "SmolLM2-135M reading household games"
    else:
        hidden, weight, targets = stand_in(case, device)
        source = f"stand-in: random head, logits of deviation {SPREAD}, hidden states that lean to their targets"
    # Detached: the checkpoint's tensors are shared by tasks, and leaves of one must not be tracked in the next.
    tokens = with_columns(case, hidden.to(dtype).detach(), weight.to(dtype).detach(), targets)
    value, gradients = truth(case, tokens)
    leaves = (tokens.hidden, tokens.weight) if tokens.logits is None else (tokens.logits,)
    return Task(
        case=case, device=device, tokens=tokens, rows=None, leaves=tuple(leaf.requires_grad_() for leaf in leaves),
        upstream=tokens.upstream if value.ndim else None, value=value, gradients=gradients, source=source,
    )  # fmt: skip


def stand_in(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden, weight, targets) in float32."""
    g = torch.Generator(device).manual_seed(0)
    weight = torch.randn(case.vocabulary, case.width, generator=g, device=device) * (SPREAD / case.width**0.5)
    targets = torch.randint(0, case.vocabulary, (case.tokens,), generator=g, device=device)
    lean = LEAN[0] + (LEAN[1] - LEAN[0]) * torch.rand(case.tokens, 1, generator=g, device=device)
    hidden = torch.randn(case.tokens, case.width, generator=g, device=device)
    return hidden + lean * F.normalize(weight[targets], dim=1), weight, targets


def with_columns(case: Case, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tokens:
    """Adds what the losses need. Ratios stay away from the clip: rounding must not decide which tokens are clipped."""
    device, size = hidden.device, case.tokens
    g = torch.Generator(device).manual_seed(1)
    small = 0.16 * torch.rand(size, generator=g, device=device) - 0.08
    large = 0.8 * torch.randint(0, 2, (size,), generator=g, device=device) - 0.4
    moved = torch.where(torch.rand(size, generator=g, device=device) < 0.1, large, small)
    length = -(-size // SEQUENCES)
    place = torch.arange(size, device=device) % length
    by_entropy = case.entropy and case.op == "linear_logprob"
    tokens = Tokens(
        hidden=hidden,
        weight=weight,
        targets=targets,
        upstream=torch.randn((size, 2) if by_entropy else size, generator=g, device=device),
        advantage=torch.randn(SEQUENCES, generator=g, device=device).repeat_interleave(length)[:size],
        old_logprob=moved,
        ref_logprob=moved,
        token_weight=(place >= round(length * (1 - case.kept))).float(),
        teacher_hidden=None,
        logits=None,
    )
    if case.op == "linear_policy_loss":
        logprob = truth(replace(case, op="linear_logprob", entropy=False), tokens)[0]
        drift = 0.3 * torch.randn(size, generator=g, device=device)
        return replace(tokens, old_logprob=(logprob + moved).float(), ref_logprob=(logprob + drift).float())
    if case.divergence != "nll":
        # The same model with something more in its prompt: other hidden states, the same head.
        noise = torch.randn(hidden.shape, generator=g, device=device) * hidden.float().std() * 0.3
        return replace(tokens, teacher_hidden=(hidden + noise).to(hidden.dtype))
    return replace(tokens, logits=hidden @ weight.t()) if case.op == "selective_logprob" else tokens


def truth(case: Case, t: Tokens) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(value, gradients) in float64 from the inputs as they are, a few rows at a time."""
    vectors = ("advantage", "old_logprob", "ref_logprob", "token_weight")
    wide = replace(t, **{name: getattr(t, name).double() for name in vectors})
    weight = t.weight.detach().double()
    values, dx, dz_all = [], [], []
    dw = torch.zeros_like(weight)
    for start in range(0, case.tokens, TRUTH_ROWS):
        rows = slice(start, min(start + TRUTH_ROWS, case.tokens))
        x = t.hidden[rows].detach().double()
        z = (x @ weight.t() if t.logits is None else t.logits[rows].detach().double()).requires_grad_()
        teacher_z = None if t.teacher_hidden is None else t.teacher_hidden[rows].double() @ weight.t()
        value = objective(case, wide, z, rows, teacher_z)
        (dz,) = torch.autograd.grad(value, z, t.upstream[rows].double() if value.ndim else None)
        values.append(value.detach())
        if t.logits is None:
            dx.append(dz @ weight)
            dw.addmm_(dz.t(), x)
        else:
            dz_all.append(dz)
    whole = torch.cat(values) if values[0].ndim else torch.stack(values).sum()
    return whole, (torch.cat(dx), dw) if t.logits is None else (torch.cat(dz_all),)


@cache
def checkpoint(device: str) -> tuple[Tensor, Tensor, Tensor] | None:
    """(hidden, head, next tokens) of SmolLM2-135M over transcripts of games; None where it is not installed."""
    try:
        folder = resolve("smollm2-135m")
    except UserError:
        return None
    from transformers import AutoModelForCausalLM, AutoTokenizer  # slow: only where the model is there
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    windows = -(-CHECKPOINT_TOKENS[device] // WINDOW)
    needed = windows * (WINDOW + 1)
    ids = AutoTokenizer.from_pretrained(folder)(transcripts(8 * needed))["input_ids"][:needed]
    windows_ids = torch.tensor(ids, device=device).view(windows, WINDOW + 1)
    with torch.no_grad():
        hidden = [model.base_model(input_ids=window[None, :-1]).last_hidden_state[0] for window in windows_ids]
    return torch.cat(hidden), model.get_output_embeddings().weight.detach(), windows_ids[:, 1:].reshape(-1)


def transcripts(characters: int) -> str:
    """What an expert sees and does in household games, as text."""
    lines: list[str] = []
    for index in count():
        game = generate_game(f"kernels/{index}", size="full")
        env, expert = HouseholdEnv(game), SearchingExpert(game.task, seed=game.id, noise=0.2, dither=0.2)
        seen = env.reset()
        for _ in range(50):
            action = expert.act(seen)
            lines += [seen.text, f"> {action}"]
            seen = env.step(action)
            if seen.done:
                break
        if sum(map(len, lines)) >= characters:
            break
    return "\n".join(lines)
