"""The vocabulary projection in bounded memory: what the `linear_*` ops share.

    raw_tv = h_t . W_v + b_v        z_tv = cap(raw_tv) / temperature_t        cap(x) = softcap * tanh(x / softcap)
    lse_t = log sum_v exp z_tv      logprob_tv = z_tv - lse_t                 p = exp(logprob)
    entropy_t = -sum_v p_tv logprob_tv

    d logprob_ty / dz_tv = 1[v = y] - p_tv
    d entropy_t  / dz_tv = -p_tv (logprob_tv + entropy_t)
    d lse_t      / dz_tv = p_tv

Legend: T tokens, H hidden, V vocabulary; n and v are the rows and columns of one block. The maths runs in float32
(float64 for float64 inputs) from the GEMM's accumulator to the last sum, whatever the dtype of the inputs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import Rows, check_number, nonzero

LOGIT_FLOOR = -1e30
"""Stands in for -inf: a bias of -inf (a masked vocabulary entry) must not meet `0 * inf`. exp() of it is 0."""

LATE_SHARE, LATE_OFFSET, MOST_LATE = 1.0, 32.0, 64
"""What a column adds to all logits from which on it is late, what such columns add together before it matters, and how
many they can be before they are no exception. (SmolLM2: 24 in 8 columns, which are not worth a copy of x a block.)"""

SAMPLED_ROWS = 256
"""At most twice as many are looked at for such columns."""

CACHED_LOGITS = 1 << 20
"""Logits that are worked on at a time, so that they stay in cache, and so that temporaries are small: 4 MiB in float32.
Those of a whole chunk came as new pages from the system each time, at up to 4 ns an element."""

LOG2_E = math.log2(math.e)


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any input is, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def full_precision(device: torch.device) -> torch.autocast:
    """Autocast would turn the float32 GEMMs of this package into bfloat16 ones."""
    return torch.autocast(device.type, enabled=False)


def exp(x: Tensor) -> Tensor:
    """e^x by way of 2^x, which torch vectorises itself: 0.44 ns an element, against 1.0 in MKL's exp (Zen 4)."""
    return (x * LOG2_E).exp2_()


def exp_(x: Tensor) -> Tensor:
    """`exp` in place."""
    return x.mul_(LOG2_E).exp2_()


def blocks(total: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover `range(total)`."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def column_pieces(z: Tensor) -> Iterator[slice]:
    """The columns of z[n, V] in pieces of about `CACHED_LOGITS` elements; on a GPU all at once."""
    return blocks(z.shape[1], max(1, z.shape[1] if z.is_cuda else CACHED_LOGITS // max(1, len(z))))


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitMap:
    """What happens to raw logits before the softmax: soft cap, then temperature. Neither receives a gradient.

    A masked entry (LOGIT_FLOOR) is not capped: at -softcap it would have a probability.
    """

    temperature: float | Tensor
    """A number, or [T]."""
    softcap: float | None

    def __post_init__(self) -> None:
        if not isinstance(self.temperature, Tensor):
            check_number("temperature", self.temperature, "a number > 0, or a tensor")
        if self.softcap is not None:
            check_number("softcap", self.softcap, "a number > 0, or None")
        if not isinstance(self.temperature, Tensor) and not self.temperature > 0:
            raise ValueError(f"temperature = {self.temperature} must be > 0; greedy decoding has no log-probability")
        if self.softcap is not None and not 0 < self.softcap < math.inf:
            raise ValueError(f"softcap = {self.softcap} must be > 0 and finite; pass None for no cap")

    @property
    def tensor(self) -> Tensor | None:
        """The temperature, if it is a tensor: saved for a backward pass, which then sees that it has been changed."""
        return self.temperature.detach() if isinstance(self.temperature, Tensor) else None

    def pick(self, rows: Rows) -> "LogitMap":
        """The map of some rows only."""
        if not isinstance(self.temperature, Tensor) or self.temperature.ndim == 0:
            return self
        return LogitMap(temperature=rows.pick(self.temperature, 1.0), softcap=self.softcap)

    def select(self, rows: Tensor | slice) -> "LogitMap":
        """The map of some of its rows."""
        if not isinstance(self.temperature, Tensor) or self.temperature.ndim == 0:
            return self
        return LogitMap(temperature=self.temperature[rows], softcap=self.softcap)

    def ref(self, raw: Tensor) -> Tensor:
        """z for raw[T, V], differentiable."""
        if self.softcap is not None:
            raw = torch.where(raw > LOGIT_FLOOR, self.softcap * torch.tanh(raw / self.softcap), LOGIT_FLOOR)
        return raw / self._column(raw)

    def apply_(self, raw: Tensor) -> Tensor | None:
        """Overwrites raw[n, v] with z and returns dz/draw, broadcastable to it (None stands for 1)."""
        slope: Tensor | None = None
        if self.softcap is not None:
            masked = raw <= LOGIT_FLOOR
            raw.div_(self.softcap).tanh_()
            slope = 1 - raw.square()
            raw.mul_(self.softcap).masked_fill_(masked, LOGIT_FLOOR)
        if isinstance(self.temperature, Tensor) or self.temperature != 1.0:
            inverse = self._column(raw).reciprocal()
            raw.mul_(inverse)
            slope = inverse if slope is None else slope.mul_(inverse)
        return slope

    def exact(self, raw: Tensor, dtype: torch.dtype) -> Tensor:
        """z f64 [n] of raw f64 [n], with the inverse temperature that `apply_` multiplies by in `dtype`."""
        z = LogitMap(temperature=1.0, softcap=self.softcap).ref(raw[:, None])
        return (z * self._column(z.to(dtype)).reciprocal()).squeeze(1)

    def _column(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.temperature, dtype=like.dtype, device=like.device).detach().reshape(-1, 1)


def raw_logits_ref(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """All raw logits [T, V] at once, in the compute dtype, differentiable."""
    dtype = compute_dtype(hidden, weight, bias)
    with full_precision(hidden.device):
        raw = F.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    return raw if bias is None else raw.clamp(min=LOGIT_FLOOR)


def raw_logits(x: Tensor, w: Tensor, b: Tensor | None, late: Tensor | None = None) -> Tensor:
    """A fresh block of raw logits [n, v] from x[n, H], w[v, H], b[v], all in the compute dtype. See `late_columns`."""
    early = x if late is None else x.index_fill(1, late, 0)
    raw = torch.mm(early, w.t()) if b is None else torch.addmm(b, early, w.t())
    if late is not None:
        raw.addmm_(x[:, late], w[:, late].t())
    return raw if b is None else raw.clamp_(min=LOGIT_FLOOR)


def late_columns(hidden: Tensor, weight: Tensor) -> Tensor | None:
    """Columns i64 of hidden[T, H] that bring an offset common to all logits, to be multiplied last; None for none.

    From a sum that has it on, every addition is rounded as a number of its size: entropies were off by 4e-5 with an
    offset of 120 in one column (logits of standard deviation 2, H 1536). Some rows of both tell, by the median, which
    one odd row does not change.
    """
    if hidden.is_cuda or not hidden.numel() or not len(weight) or compute_dtype(hidden, weight) == torch.float64:
        return None
    of_tokens = some_rows(hidden).float().abs().nanmedian(0).values
    shares = of_tokens * some_rows(weight).mean(0, dtype=torch.float32).abs()
    late = (shares > LATE_SHARE).nonzero().squeeze(1)
    return late if shares[late].sum() > LATE_OFFSET and len(late) <= MOST_LATE else None


def some_rows(matrix: Tensor) -> Tensor:
    return matrix[:: max(1, len(matrix) // SAMPLED_ROWS)]


def log_softmax_(z: Tensor) -> Tensor:
    """log softmax over the columns of z[n, V], in place."""
    z.sub_(z.amax(1, keepdim=True))
    total = z.new_zeros(len(z), 1)
    for cols in column_pieces(z):
        total += exp(z[:, cols]).sum(1, keepdim=True)
    return z.sub_(total.log_())


class Normaliser(NamedTuple):
    """log p = z - peak - log_total, subtracted in this order.

    Their sum, the lse, is rounded: by 4e-6 where it is 100, and p with it, which at a target of probability almost 1 is
    more than is left of the gradient, p - 1.
    """

    peak: Tensor
    """[n] max_v z"""
    total: Tensor
    """[n] sum_v exp(z - peak)"""

    @property
    def log_total(self) -> Tensor:
        return self.total.log()

    def select(self, rows: Tensor | slice) -> "Normaliser":
        return Normaliser(self.peak[rows], self.total[rows])


class SoftmaxStats(NamedTuple):
    """What a block of columns knows of each row's softmax; blocks and vocabulary shards merge."""

    peak: Tensor
    """[n] max_v z"""
    total: Tensor
    """[n] sum_v exp(z - peak)"""
    moment: Tensor
    """[n] sum_v exp(z - peak) (z - peak)"""
    target: Tensor
    """[n] z at the target; 0 where the target is in another block"""
    error: Tensor
    """[n] what z at the peak is more than `peak`, a product's result; 0 where nobody looked (see exact_logits.py)"""

    def _exact_log_total(self) -> Tensor:
        """f64: what is a difference of large numbers is rounded once, at its end."""
        return (self.total.double() + self.error.double().expm1()).log()

    @property
    def logprob(self) -> Tensor:
        return (self.target.double() - self.peak.double() - self._exact_log_total()).to(self.peak.dtype)

    @property
    def entropy(self) -> Tensor:
        log_total, error = self._exact_log_total(), self.error.double()
        return (log_total - (self.moment.double() + error.exp() * error) / log_total.exp()).to(self.peak.dtype)

    @property
    def lse(self) -> Tensor:
        return (self.peak.double() + self._exact_log_total()).to(self.peak.dtype)

    @property
    def rounded_entropy(self) -> Tensor:
        """Without the error, like `normaliser`: with another, -p (log p + entropy) would not add up to 0."""
        return self.total.log() - self.moment / self.total

    @property
    def normaliser(self) -> Normaliser:
        """Without the error: of the logits as a backward pass makes them again, so that their p add up to 1."""
        return Normaliser(self.peak, self.total)


def softmax_stats_(z: Tensor, column: Tensor, inside: Tensor, *, with_moment: bool = True) -> SoftmaxStats:
    """Statistics of z[n, v]; `column` i64[n] is the target's column, where `inside` bool[n].

    Leaves z shifted by its row maxima; without the moment, which only the entropy needs (0 then), exp of that.
    """
    target = torch.where(inside, z.gather(1, column[:, None]).squeeze(1), 0)
    peak = z.amax(1)
    z.sub_(peak[:, None])
    total, moment, error = torch.zeros(3, len(z), dtype=z.dtype, device=z.device)
    if not with_moment:
        return SoftmaxStats(peak=peak, total=exp_(z).sum(1), moment=moment, target=target, error=error)
    for cols in column_pieces(z):
        weight = exp(z[:, cols])
        total += weight.sum(1)
        moment += weight.mul_(z[:, cols]).sum(1)
    return SoftmaxStats(peak=peak, total=total, moment=moment, target=target, error=error)


def merge(a: SoftmaxStats, b: SoftmaxStats) -> SoftmaxStats:
    """Statistics of the union of two sets of columns."""
    peak = torch.maximum(a.peak, b.peak)
    parts = []
    for s in (a, b):
        drop = s.peak - peak
        scale = drop.exp()
        total = scale * s.total  # times a drop to the floor: 0, where total * drop could be infinite
        parts.append((total, scale * s.moment + total * drop))
    (total_a, moment_a), (total_b, moment_b) = parts
    return SoftmaxStats(
        peak=peak, total=total_a + total_b, moment=moment_a + moment_b, target=a.target + b.target,
        error=torch.where(a.peak >= b.peak, a.error, b.error),
    )  # fmt: skip


class SoftmaxGrad(NamedTuple):
    """dLoss/dz_tv = p_tv (p + p_logp * logprob_tv) + target * 1[v = y_t]: the three coefficients [n] of each row."""

    target: Tensor
    p: Tensor
    p_logp: Tensor | None

    @property
    def of_logprob_alone(self) -> bool:
        """dLoss/dz_tv = p (p_tv - 1[v = y_t]): nothing but logprob has an upstream gradient."""
        return self.p_logp is None and torch.equal(self.p, -self.target)

    @classmethod
    def from_upstream(
        cls, entropy: Tensor, g_logprob: Tensor | None, g_entropy: Tensor | None = None, g_lse: Tensor | None = None
    ) -> "SoftmaxGrad":
        """From `SoftmaxStats.rounded_entropy` and the upstream gradients of logprob, entropy and lse; all [n], None
        for zero."""
        target = torch.zeros_like(entropy) if g_logprob is None else g_logprob
        p = -target if g_lse is None else g_lse - target
        if g_entropy is None:
            return cls(target=target, p=p, p_logp=None)
        # A row without a gradient stays out, also where it is NaN.
        return cls(target=target, p=p - torch.where(g_entropy == 0, 0, g_entropy * entropy), p_logp=-g_entropy)

    def live_rows(self) -> Tensor | slice:
        """The rows with any gradient."""
        live = (self.target != 0) | (self.p != 0)
        return nonzero(live if self.p_logp is None else live | (self.p_logp != 0))

    def select(self, rows: Tensor | slice) -> "SoftmaxGrad":
        return SoftmaxGrad(self.target[rows], self.p[rows], None if self.p_logp is None else self.p_logp[rows])

    def logits_(self, z: Tensor, log_total: Tensor, column: Tensor, inside: Tensor) -> Tensor:
        """dLoss/dz [n, v]; z[n, v], already less its peak, is spent."""
        for cols in column_pieces(z):
            logprob = z[:, cols].sub_(log_total[:, None])
            if self.p_logp is None:
                exp_(logprob).mul_(self.p[:, None])
            else:
                p = exp(logprob)
                logprob.mul_(self.p_logp[:, None]).add_(self.p[:, None]).mul_(p)
        return z.scatter_add_(1, column[:, None], torch.where(inside, self.target, 0)[:, None])


class RawGrad(NamedTuple):
    """The gradient of raw logits, ready to be multiplied."""

    values: Tensor
    """[n, v], the gradient divided by `scale`"""
    scale: Tensor | None
    """0-dim; None for 1"""
