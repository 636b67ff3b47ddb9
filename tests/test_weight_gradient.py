"""The sum of a weight's gradient, whose first rows are summed in the memory of the rounded one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from projections import gradients, relative_error
from test_linear_logprob import make

from siri.kernels import linear_policy_loss
from siri.kernels import weight_gradient as module
from siri.kernels.weight_gradient import WeightGradient

KINDS = [
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.bfloat16, torch.float64),
]


@pytest.mark.parametrize(("dtype", "sum_dtype"), KINDS)
@pytest.mark.parametrize("scaled", [False, True])
@given(data=st.data())
def test_the_sum_is_that_of_one_matrix_of_its_own(
    dtype: torch.dtype, sum_dtype: torch.dtype, scaled: bool, data: st.DataObject
) -> None:
    V, H, rounded_rows = (data.draw(st.integers(1, most)) for most in (70, 5, 70))
    chunks = data.draw(st.lists(st.integers(1, 4), max_size=4))
    g = torch.Generator().manual_seed(V * H)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ALIGNED_ROWS", 2)
        patch.setattr(module, "ROUNDED_ROWS", rounded_rows)
        patch.setattr(module, "SCALED_ROWS", 3)
        found = WeightGradient(torch.empty(V, H), dtype=dtype, sum_dtype=sum_dtype)
        expected = torch.zeros(V, H, dtype=sum_dtype)
        for n in chunks:
            # Whole numbers, whose sums are exact: what is compared is where they land, and one rounding.
            draw, x = (torch.randint(-99, 99, (n, width), generator=g).to(sum_dtype) for width in (V, H))
            scale = torch.tensor(0.5, dtype=sum_dtype) if scaled else None
            found.add_(draw, x, scale)
            expected += draw.t() @ x * (0.5 if scaled else 1)
        result = found.rounded()
    assert torch.equal(result, expected.to(dtype))


@pytest.mark.parametrize(("V", "share"), [(49152, 1.0), (257, 1.01), (1000, 1.12)])
def test_no_memory_but_that_of_the_sum(V: int, share: float) -> None:
    """Beside it only a few rows at a time, and of it nothing stays but the gradient."""
    gradient = WeightGradient(torch.empty(V, 64), dtype=torch.bfloat16, sum_dtype=torch.float32)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for _, t in gradient._parts}
    assert sum(storages.values()) <= share * V * 64 * 4
    gradient.add_(torch.ones(1, V), torch.ones(1, 64), None)
    result = gradient.rounded()
    assert result.untyped_storage().nbytes() == V * 64 * 2
    assert not gradient._parts


def test_a_bfloat16_gradient_of_many_chunks_is_rounded_once() -> None:
    """Against float64, with 30 chunks: eager's error, not three times as much as sums in bfloat16 have."""
    x, w, y = make(30 * 64, 24, 300)
    advantage = torch.linspace(-1, 1, len(x))
    leaves = [x.bfloat16().requires_grad_(), w.bfloat16().requires_grad_()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("siri.kernels.token_loss.CHUNK_ELEMENTS", 1)  # 64 rows
        loss, _ = linear_policy_loss(*leaves, y, advantage, None, denominator=len(x))
    rows = torch.arange(len(x))
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    truth = -(advantage.double() * torch.log_softmax(exact[0] @ exact[1].t(), 1)[rows, y]).sum() / len(x)
    rough = -(advantage * torch.log_softmax((leaves[0] @ leaves[1].t()).float(), 1)[rows, y]).sum() / len(x)
    expected = gradients(truth, exact[1])[0]
    ours, eager = gradients(loss, leaves[1])[0], gradients(rough, leaves[1])[0]
    assert relative_error(ours, expected) <= 1.0 * relative_error(eager, expected)
