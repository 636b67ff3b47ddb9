"""Who is compared: for each op, functions that take the same task and give the same value.

Here are ours and PyTorch's; those of other packages are made in `kernel_packages.py`, which says how makers work.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from gigpo_incumbent import GAMMA, OMEGA, PENALTY, careful, incumbent
from kernel_packages import (
    Call,
    Unsupported,
    cce,
    cce_compiled,
    liger_cross_entropy,
    liger_grpo,
    liger_jsd,
    liger_jsd_chunked,
    liger_scaled,
    need_gpu,
    outputs,
    quack_linear,
    quack_rows,
    trl_chunked,
    trl_selective,
    verl_torch,
    verl_triton,
)
from kernel_tasks import ENTROPY_COEF, KL_COEF, Case, Task, Tokens, objective, tokens_of
from torch import Tensor

from siri.kernels import (
    gigpo_advantage,
    linear_logprob,
    linear_policy_loss,
    masked_distill_loss,
    selective_logprob,
    token_loss,
)

OURS = "siri.kernels"
EAGER = "torch, eager"
INCUMBENT = "the incumbent's algorithm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    name: str
    make: Callable[[Task], Call]
    compiles: bool = False
    """Its first call is no measure of anything."""
    once: bool = False
    """Takes seconds where others take milliseconds: the call that is checked is the only one."""
    most_rows: int | None = None
    """It is given larger cases only on request."""


def ours_logprob(task: Task) -> Call:
    t = tokens_of(task)
    if task.case.entropy:
        return lambda: outputs(task.case, *linear_logprob(t.hidden, t.weight, t.targets, return_entropy=True))
    return lambda: linear_logprob(t.hidden, t.weight, t.targets)


def ours_policy_in_large_chunks(task: Task) -> Call:
    """Fewer passes over the gradient of the weight, twice the memory: which is better on a GPU is not known yet."""
    if task.device.type == "cpu":
        raise Unsupported("chunks have this size on a GPU")
    call = ours_policy(task)

    def in_large_chunks() -> Tensor:
        with patch.object(token_loss, "GPU_CHUNK_ELEMENTS", 2**28):
            return call()

    return in_large_chunks


def ours_policy(task: Task) -> Call:
    t, denominator = tokens_of(task), tokens_of(task).token_weight.sum()
    terms: dict[str, Any] = {}
    if task.case.entropy:
        terms = {"kl_coef": KL_COEF, "ref_logprob": t.ref_logprob, "entropy_coef": ENTROPY_COEF}
    return lambda: linear_policy_loss(
        t.hidden, t.weight, t.targets, t.advantage, t.old_logprob, token_weight=t.token_weight,
        denominator=denominator, **terms,
    )[0]  # fmt: skip


def ours_distill(task: Task) -> Call:
    t = tokens_of(task)
    return lambda: masked_distill_loss(
        t.hidden, t.weight, t.targets, t.token_weight, divergence=task.case.divergence, teacher_hidden=t.teacher_hidden,
        denominator=len(t.targets),
    )  # fmt: skip


def ours_selective(task: Task) -> Call:
    t = tokens_of(task)
    return lambda: selective_logprob(t.logits, t.targets)


def ours_gigpo(task: Task) -> Call:
    rows = task.rows
    assert rows is not None
    parity = {"parity": "verl_agent", "episode_stats": "row"} if task.case.parity else {}
    return lambda: gigpo_advantage(
        rows.reward, rows.traj, rows.episode_group, rows.step_group, rows.valid, gamma=GAMMA, omega=OMEGA,
        penalty=PENALTY, **parity,
    )  # fmt: skip


def ours_gigpo_in_a_graph(task: Task) -> Call:
    """The kernels alone: no launches from Python, and no wait for the flag of wrong labels."""
    need_gpu(task)
    call = ours_gigpo(task)
    call()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = call()

    def replay() -> Tensor:
        graph.replay()
        return value

    return replay


def plain(case: Case, t: Tokens) -> Tensor:
    """Logits in the dtype of the model, the rest in float32."""
    everything = slice(0, case.tokens)
    z = t.hidden @ t.weight.t() if t.logits is None else t.logits
    teacher = None if t.teacher_hidden is None else (t.teacher_hidden @ t.weight.detach().t()).float()
    return objective(case, t, z.float(), everything, teacher)


def eager(task: Task) -> Call:
    t = tokens_of(task)
    return lambda: plain(task.case, t)


def compiled(task: Task) -> Call:
    t = tokens_of(task)
    # Graphs of earlier tasks count towards the limit of recompilations. Nobody else may do this: it would throw away
    # what the contestants before have compiled, and their first round would compile it again.
    torch.compiler.reset()
    function = torch.compile(plain, dynamic=False)
    return lambda: function(task.case, t)


def torch_linear_cross_entropy(task: Task, *, chunked: bool, reduction: str) -> Call:
    if not hasattr(F, "linear_cross_entropy"):
        raise Unsupported(f"torch {torch.__version__} has no F.linear_cross_entropy")
    t, sign = tokens_of(task), -1.0 if reduction == "none" else 1.0
    options = torch.nn.LinearCrossEntropyOptions() if chunked else None
    return lambda: sign * F.linear_cross_entropy(t.hidden, t.weight, t.targets, reduction=reduction, options=options)


def torch_cross_entropy(task: Task) -> Call:
    t = tokens_of(task)
    assert t.logits is not None
    return lambda: -F.cross_entropy(t.logits.float(), t.targets, reduction="none")


def python_gigpo(task: Task) -> Call:
    rows = task.rows
    assert rows is not None
    own = rows.to(torch.device("cpu"))
    return lambda: careful(own, own_rule=not task.case.parity)


def incumbent_gigpo(task: Task) -> Call:
    rows = task.rows
    assert rows is not None
    if not task.case.parity:
        raise Unsupported("has another rule")
    own = rows.to(torch.device("cpu"))
    return lambda: incumbent(own)


COMPILED = Contestant(name="torch.compile", make=compiled, compiles=True)
PLAIN = Contestant(name=EAGER, make=eager)


def of_torch(reduction: str) -> list[Contestant]:
    """PyTorch's own fused op, whole and in chunks."""
    return [
        Contestant(
            name=f"F.linear_cross_entropy{told}",
            make=lambda task, chunked=chunked: torch_linear_cross_entropy(task, chunked=chunked, reduction=reduction),
        )
        for told, chunked in (("", False), (", chunked", True))
    ]


def of_cce(reduction: str) -> list[Contestant]:
    """Apple's, with its gradient filter and without, and what it has for other hardware."""
    kernels = [
        Contestant(
            name=f"cut-cross-entropy{told}",
            make=lambda task, filtered=filtered: cce(task, reduction=reduction, filtered=filtered),
            compiles=True,
        )
        for told, filtered in (("", True), (", no filter", False))
    ]
    make = partial(cce_compiled, reduction=reduction)
    return [*kernels, Contestant(name="cut-cross-entropy, torch_compile", make=make, compiles=True)]


LIGER_SCALED = Contestant(name="Liger scaled cross-entropy", make=liger_scaled)
OF_TRAINERS = [
    Contestant(name="TRL chunked log-prob", make=trl_chunked),
    Contestant(name="verl FusedLinearForPPO", make=verl_torch),
    Contestant(name="verl linear_cross_entropy, Triton", make=verl_triton, compiles=True),
]

CONTESTANTS: dict[str, list[Contestant]] = {
    "linear_logprob": [
        Contestant(name=OURS, make=ours_logprob),
        PLAIN,
        COMPILED,
        *of_torch("none"),
        LIGER_SCALED,
        *of_cce("none"),
        *OF_TRAINERS,
    ],
    "linear_logprob, entropy": [
        Contestant(name=OURS, make=ours_logprob),
        PLAIN,
        COMPILED,
        LIGER_SCALED,
        *OF_TRAINERS,
    ],
    "linear_policy_loss": [
        Contestant(name=OURS, make=ours_policy),
        Contestant(name=f"{OURS}, chunks of 1 GiB", make=ours_policy_in_large_chunks),
        PLAIN,
        COMPILED,
        Contestant(name="Liger GRPO loss", make=liger_grpo, compiles=True),
    ],
    "masked_distill_loss": [
        Contestant(name=OURS, make=ours_distill),
        PLAIN,
        COMPILED,
        *of_torch("mean"),
        Contestant(name="Liger fused linear cross-entropy", make=liger_cross_entropy),
        *of_cce("mean"),
        Contestant(name="quack chunked cross-entropy", make=quack_linear, compiles=True),
    ],
    "masked_distill_loss, teacher": [
        Contestant(name=OURS, make=ours_distill),
        PLAIN,
        COMPILED,
        Contestant(name="Liger fused linear JSD", make=liger_jsd),
        Contestant(name="Liger JSD loss, chunked", make=liger_jsd_chunked, compiles=True),
    ],
    "selective_logprob": [
        Contestant(name=OURS, make=ours_selective),
        PLAIN,
        COMPILED,
        Contestant(name="F.cross_entropy", make=torch_cross_entropy),
        Contestant(name="TRL selective_log_softmax", make=trl_selective),
        Contestant(name="quack cross-entropy", make=quack_rows, compiles=True),
    ],
    "gigpo_advantage": [
        Contestant(name=OURS, make=ours_gigpo),
        Contestant(name="siri.kernels, in a CUDA graph", make=ours_gigpo_in_a_graph),
        Contestant(name="Python, grouped by dictionaries", make=python_gigpo, once=True),
        Contestant(name=INCUMBENT, make=incumbent_gigpo, once=True, most_rows=20_000),
    ],
}
"""By op; `contestants` chooses the list."""


def contestants(case: Case) -> list[Contestant]:
    if case.op == "linear_logprob" and case.entropy:
        return CONTESTANTS["linear_logprob, entropy"]
    return CONTESTANTS[case.op if case.divergence == "nll" else f"{case.op}, teacher"]
