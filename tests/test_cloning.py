"""Behaviour cloning: blocks lose and mix nothing, the loss is that of each example alone, the rates go their course."""

import math
import re
from collections.abc import Iterator
from itertools import count, islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import tokenizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import LlamaConfig, LlamaForCausalLM

from siri import cloning
from siri.cloning import Block, Example, block_loss, blocks, clone
from siri.tiny import new_model


def numbered(sizes: list[int]) -> list[Example]:
    """Examples of these lengths in which no token and no weight occurs twice."""
    numbers = count(1)
    found = []
    for size in sizes:
        ids = np.array(list(islice(numbers, size)), dtype=np.int32)
        found.append(Example(ids=ids, weight=(ids / 1024).astype(np.float32)))
    return found


def first_fit(sizes: list[int], rows: int, length: int) -> list[list[list[int]]]:
    """The rule written once more: for each block and row, which examples it holds."""
    packed: list[list[list[int]]] = []
    for index, size in enumerate(sizes):
        taken = [sum(min(sizes[i], length) for i in row) for row in packed[-1]] if packed else []
        free = [row for row, used in enumerate(taken) if used + min(size, length) <= length]
        if not free:
            packed.append([[] for _ in range(rows)])
            free = [0]
        packed[-1][free[0]].append(index)
    return packed


@given(sizes=st.lists(st.integers(1, 14), max_size=30), rows=st.integers(1, 4), length=st.integers(1, 10))
def test_blocks_hold_every_example_once_whole_up_to_the_length_and_apart(sizes, rows, length):
    examples = numbered(sizes)
    packed = list(blocks(iter(examples), rows=rows, length=length))
    layout = first_fit(sizes, rows, length)
    assert len(packed) == len(layout)
    for block, rows_of_block in zip(packed, layout, strict=True):
        assert block.ids.dtype == block.position.dtype == block.document.dtype == torch.int64
        assert block.weight.dtype == torch.float32
        in_order = sorted(index for row in rows_of_block for index in row)
        for row, indices in enumerate(rows_of_block):
            held = [examples[index] for index in indices]
            used = sum(min(len(e.ids), length) for e in held)
            unused = length - used
            assert block.ids[row].tolist() == [int(i) for e in held for i in e.ids[:length]] + [0] * unused
            assert block.weight[row].tolist() == [float(w) for e in held for w in e.weight[:length]] + [0.0] * unused
            assert block.position[row, :used].tolist() == [i for e in held for i in range(min(len(e.ids), length))]
            # Counted through the block in order of arrival, so no two examples of a row share one.
            documents = [in_order.index(i) for i in indices for _ in range(min(sizes[i], length))]
            assert block.document[row].tolist() == documents + [-1] * unused


def test_an_endless_stream_is_read_no_further_than_to_the_example_that_does_not_fit():
    stream = iter(numbered([3] * 100))
    block = next(blocks(stream, rows=2, length=7))
    assert (block.document >= 0).sum() == 12
    assert next(stream).ids[0] == 5 * 3 + 1


def small_model(*, tied: bool = True, seed: int = 0) -> LlamaForCausalLM:
    """Weights large enough that it matters to the loss what a token attends to."""
    model = new_model(tokenizer(), hidden=16, layers=2, heads=2, intermediate=32, seed=seed)
    if not tied:
        config = LlamaConfig(**{**model.config.to_dict(), "tie_word_embeddings": False})
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= 15
    return model


def random_examples(sizes: list[int], seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    found = []
    for size in sizes:
        weight = rng.choice([0.0, 0.2, 1.0], size).astype(np.float32)
        weight[0] = 0
        found.append(Example(ids=rng.integers(4, len(tokenizer()), size).astype(np.int32), weight=weight))
    return found


def loss_of_each_alone(model: LlamaForCausalLM, examples: list[Example], length: int) -> torch.Tensor:
    """sum(weight * nll) / sum(weight): no mask, no packing, positions as the library counts them."""
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for example in examples:
        ids = torch.from_numpy(example.ids[:length]).long()
        logprob = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0].double().log_softmax(dim=-1)
        for place in range(1, len(ids)):
            total = total - float(example.weight[place]) * logprob[place - 1, ids[place]]
            weights += float(example.weight[place])
    return total / weights


def gradients(model: LlamaForCausalLM, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("seed", range(3))
def test_block_loss_and_its_gradient_are_those_of_each_example_alone(seed):
    """Rows of several examples, one that is cut, one row with room left."""
    model, length = small_model(seed=seed), 20
    examples = random_examples([7, 9, 31, 4, 12, 3], seed)
    [block] = blocks(iter(examples), rows=3, length=length)
    assert (block.document == -1).any()
    packed, alone = block_loss(model, block), loss_of_each_alone(model, examples, length)
    torch.testing.assert_close(packed.double(), alone, rtol=1e-5, atol=0)
    got, expected = gradients(model, packed), gradients(model, alone)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


def test_a_block_of_nothing_to_imitate_teaches_nothing():
    model = small_model()
    example = Example(ids=np.arange(9, dtype=np.int32), weight=np.zeros(9, np.float32))
    [block] = blocks(iter([example]), rows=1, length=9)
    loss = block_loss(model, block)
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in gradients(model, loss).values())


@pytest.mark.parametrize("tied", [True, False])
def test_matrices_of_the_layers_go_to_muon_and_all_else_to_adamw(tied):
    model = small_model(tied=tied)
    muon, adamw = cloning._optimizers(model, 0.01)
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_muon, by_adamw = (
        [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        for optimizer in (muon, adamw)
    )
    layers = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight"
    assert sorted(by_muon) == sorted(name for name in names.values() if re.fullmatch(layers, name))
    assert len(by_muon) == 2 * 7
    assert sorted(by_muon + by_adamw) == sorted(names.values())
    assert ("lm_head.weight" in by_adamw) is not tied


def endless(block: Block) -> Iterator[Block]:
    while True:
        yield block


def test_rates_rise_over_three_percent_and_fall_as_a_cosine_to_a_tenth(monkeypatch):
    steps, lr = 103, 0.02  # 3 steps of warm-up and 100 of descent
    model = new_model(tokenizer(), hidden=8, layers=1, heads=1, intermediate=8, seed=0)
    [block] = blocks(iter(random_examples([6])), rows=1, length=6)
    rates: dict[str, list[float]] = {"Muon": [], "AdamW": []}
    losses: list[float] = []
    reported: list[tuple[int, float, float]] = []

    def noted(*args) -> torch.Tensor:
        loss = block_loss(*args)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(cloning, "block_loss", noted)
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates[type(optimizer).__name__].append(optimizer.param_groups[0]["lr"])
    )
    try:
        clone(
            model, endless(block), steps=steps, lr=lr, compile_model=False, report=lambda *line: reported.append(line)
        )
    finally:
        hook.remove()
    assert len(rates["Muon"]) == steps
    assert rates["AdamW"] == pytest.approx([rate / 2 for rate in rates["Muon"]], rel=1e-12)
    scale = [rate / lr for rate in rates["Muon"]]
    assert scale[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    quarter = 0.45 * math.sqrt(0.5)
    assert [scale[28], scale[53], scale[78]] == pytest.approx([0.55 + quarter, 0.55, 0.55 - quarter])
    assert scale[3:] == sorted(scale[3:], reverse=True)
    assert 0.1 < scale[-1] < 0.101
    # Each report is of the steps since the one before it.
    assert [step for step, _, _ in reported] == [50, 100, 103]
    means = [float(np.mean(losses[first:last])) for first, last in ((0, 50), (50, 100), (100, 103))]
    assert [loss for _, loss, _ in reported] == pytest.approx(means, rel=1e-6)
    assert all(speed > 0 for _, _, speed in reported)
    assert losses[-1] < 0.5 * losses[0]
