"""What other packages offer: makers of calls, for `kernel_peers.py`.

A maker imports its package, prepares, and returns the call that is measured. What it cannot do, it says with an
`ImportError` (not installed) or `Unsupported`; the results then give the reason in place of a number.

    pip install "liger-kernel[cutedsl]" cut-cross-entropy quack-kernels && pip install --no-deps trl verl
"""

from collections.abc import Callable

import torch
from import_peers import skip_init, stand_ins
from kernel_tasks import SEQUENCES, Case, Task, tokens_of
from torch import Tensor

Call = Callable[[], Tensor]

LIGER_BETA = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}


class Unsupported(Exception):
    """This contestant does not do this task; the message says why."""


def liger_scaled(task: Task) -> Call:
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    t = tokens_of(task)
    if task.case.entropy:

        def both() -> Tensor:
            nll, entropy = LigerFusedLinearScaledCrossEntropyFunction.apply(
                t.hidden, t.weight, t.targets, 1.0, -100, 1, True
            )
            return outputs(task.case, -nll, entropy)

        return both
    return lambda: -LigerFusedLinearScaledCrossEntropyFunction.apply(t.hidden, t.weight, t.targets)


def liger_grpo(task: Task) -> Call:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    if task.case.entropy:
        raise Unsupported("has no entropy term")
    t = tokens_of(task)
    loss = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type="bnpo")
    width = t.hidden.shape[1]
    targets, old, mask = (v.view(SEQUENCES, -1) for v in (t.targets, t.old_logprob, t.token_weight))
    advantage = t.advantage.view(SEQUENCES, -1)[:, 0]
    return lambda: loss(
        t.hidden.view(SEQUENCES, -1, width), t.weight, targets, mask, advantage, old_per_token_logps=old
    )[0]


def liger_cross_entropy(task: Task) -> Call:
    need_gpu(task)
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    t = tokens_of(task)

    def call() -> Tensor:
        found = LigerFusedLinearCrossEntropyFunction.apply(t.hidden, t.weight, t.targets)
        return found[0] if isinstance(found, tuple) else found

    return call


def liger_jsd(task: Task) -> Call:
    need_gpu(task)
    from liger_kernel.ops import LigerFusedLinearJSDFunction

    t, beta = tokens_of(task), LIGER_BETA[task.case.divergence]
    return lambda: LigerFusedLinearJSDFunction.apply(
        t.hidden, t.weight, t.teacher_hidden, t.weight.detach(), t.targets, beta, -100, 1.0
    )


def liger_jsd_chunked(task: Task) -> Call:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    t, beta = tokens_of(task), LIGER_BETA[task.case.divergence]
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta)
    return lambda: loss(t.hidden, t.weight, t.teacher_hidden, t.weight.detach(), t.targets)


def cce(task: Task, *, reduction: str, filtered: bool) -> Call:
    need_gpu(task)
    from cut_cross_entropy import linear_cross_entropy

    t, sign = tokens_of(task), -1.0 if reduction == "none" else 1.0
    options = {} if filtered else {"filter_eps": None}
    return lambda: sign * linear_cross_entropy(t.hidden, t.weight, t.targets, reduction=reduction, **options)


def cce_compiled(task: Task, *, reduction: str) -> Call:
    """What it offers where its kernels do not run: all logits, and torch.compile."""
    if task.device.type == "cuda":
        raise Unsupported("its own kernels are measured there")
    from cut_cross_entropy import linear_cross_entropy

    t, sign = tokens_of(task), -1.0 if reduction == "none" else 1.0
    return lambda: sign * linear_cross_entropy(t.hidden, t.weight, t.targets, reduction=reduction, impl="torch_compile")


def quack_linear(task: Task) -> Call:
    need_gpu(task)
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    t = tokens_of(task)
    return lambda: chunked_linear_cross_entropy(t.hidden, t.weight, t.targets)


def quack_rows(task: Task) -> Call:
    need_gpu(task)
    from quack.cross_entropy import cross_entropy

    t = tokens_of(task)
    return lambda: -cross_entropy(t.logits, t.targets, reduction="none")


def trl_chunked(task: Task) -> Call:
    with stand_ins("pandas", "datasets"):
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as COLUMNS
        from trl.trainer.utils import _ChunkedLogProbFunction

    t, wanted = tokens_of(task), ("entropy",) if task.case.entropy else ()

    def call() -> Tensor:
        found = _ChunkedLogProbFunction.apply(t.hidden, t.weight, None, t.targets, 1.0, COLUMNS, None, 1.0, wanted)
        return outputs(task.case, *found[:2])

    return call


def trl_selective(task: Task) -> Call:
    with stand_ins("pandas", "datasets"):
        from trl.trainer.utils import selective_log_softmax

    t = tokens_of(task)
    return lambda: selective_log_softmax(t.logits, t.targets)


def verl_torch(task: Task) -> Call:
    skip_init("verl", "verl.utils")
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    t, fused = tokens_of(task), FusedLinearForPPO()
    return lambda: outputs(task.case, *fused(t.hidden, t.weight, t.targets))


def verl_triton(task: Task) -> Call:
    need_gpu(task)
    skip_init("verl", "verl.utils")
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    t = tokens_of(task)
    return lambda: outputs(task.case, *linear_cross_entropy(t.hidden, t.weight, t.targets, 1.0, "none", None))


def outputs(case: Case, logprob: Tensor, entropy: Tensor | None) -> Tensor:
    """What the case asks for, of both."""
    if not case.entropy:
        return logprob
    assert entropy is not None
    return torch.stack([logprob, entropy.to(logprob.dtype)], dim=-1)


def need_gpu(task: Task) -> None:
    if task.device.type != "cuda":
        raise Unsupported("needs an NVIDIA GPU")
