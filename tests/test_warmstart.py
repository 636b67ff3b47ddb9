"""The warm start: a short one learns, loads, can be repeated and goes on from an earlier one."""

import json
import math
import os
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tokenizer

from siri import cli, warmstart
from siri.demonstrations import play_example
from siri.engine.errors import UserError
from siri.engine.policy import load_policy
from siri.envs.household.brief import brief
from siri.household_plays import play
from siri.prompts import Renderer
from siri.tiny import new_model
from siri.warmstart import LESSONS, WarmstartConfig, check, examples

SMALL = WarmstartConfig(
    steps=100,
    size="small",  # the rooms of full games alone are longer than a row
    max_turns=16,
    vocab_size=400,
    hidden=32,
    layers=1,
    heads=2,
    intermediate=64,
    rows=2,
    row_tokens=96,
)
WEIGHTS = "model.safetensors"
FEW = 20


def renderer_of(some_tokenizer) -> Renderer:
    return Renderer(some_tokenizer, style="compact", shorten=brief)


@pytest.fixture(scope="module")
def few_episodes():
    """The tokenizer's corpus is what takes the time of a short warm start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warmstart, "CORPUS_EPISODES", FEW)
        yield


@pytest.fixture(scope="module")
def made(few_episodes, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("warmstart") / "policy"
    warmstart.warmstart(SMALL, path)
    return path


def test_a_short_warm_start_learns(made):
    lines = [json.loads(line) for line in (made / "warmstart.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [50, 100]
    losses = [line["loss"] for line in lines]
    assert losses[0] < math.log(SMALL.vocab_size)
    assert losses[1] < 0.85 * losses[0]
    seconds = [line["seconds"] for line in lines]
    assert 0 < seconds[0] < seconds[1]
    assert all(line["tokens_per_second"] > 0 for line in lines)


def imitation_loss(model, renderer: Renderer) -> float:
    """Nats an action token, in episodes that no warm start of these tests gets to see, each alone."""
    found = []
    for index in range(10**6, 10**6 + 20):
        example = play_example(play(index, size=SMALL.size, max_turns=8), renderer)
        ids = torch.from_numpy(example.ids).long()
        with torch.no_grad():
            logprob = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0].log_softmax(dim=-1)
        found += [-float(logprob[i - 1, ids[i]]) for i in range(1, len(ids)) if example.weight[i] == 1]
    return float(np.mean(found))


def test_what_it_writes_loads_as_a_policy_that_has_learnt_to_act(made):
    policy = load_policy(str(made), dtype=torch.float32, device=torch.device("cpu"))
    renderer = renderer_of(policy.tokenizer)
    untrained = new_model(
        policy.tokenizer,
        hidden=SMALL.hidden,
        layers=SMALL.layers,
        heads=SMALL.heads,
        intermediate=SMALL.intermediate,
        seed=SMALL.seed,
    )
    before, after = imitation_loss(untrained, renderer), imitation_loss(policy.model, renderer)
    assert before == pytest.approx(math.log(len(policy.tokenizer)), abs=0.3)
    assert after < before - 1
    about = json.loads((made / "warmstart.json").read_text())
    assert about["parameters"] == sum(parameter.numel() for parameter in untrained.parameters())
    assert about["versions"]["torch"] == torch.__version__


def test_the_command_it_leaves_makes_the_same_policy_again(made, tmp_path):
    about = json.loads((made / "warmstart.json").read_text())
    siri, *words = shlex.split(about["command"])
    assert siri == "siri"
    # Another process orders its sets in another way.
    few = f"import sys; from siri import cli, warmstart; warmstart.CORPUS_EPISODES = {FEW}; sys.exit(cli.main())"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": str(about["threads"])}
    subprocess.run([sys.executable, "-c", few, *words, "--out", str(tmp_path / "again")], check=True, env=environment)
    clocked = {"warmstart.json", "warmstart.jsonl"}
    names = {path.name for path in made.iterdir()}
    assert names == {path.name for path in (tmp_path / "again").iterdir()}
    assert {"config.json", "tokenizer.json", WEIGHTS} <= names - clocked
    for name in names - clocked:
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes(), name
    assert json.loads((tmp_path / "again" / "warmstart.json").read_text())["command"] == about["command"]


def test_a_warm_start_goes_on_from_an_earlier_policy_and_says_so(made, tmp_path):
    config = replace(SMALL, seed=3, steps=50, lr=1e-3, start=str(made), hidden=64)
    warmstart.warmstart(config, tmp_path / "on")
    earlier, later = (
        load_policy(str(path), dtype=torch.float32, device=torch.device("cpu")) for path in (made, tmp_path / "on")
    )
    assert later.tokenizer.get_vocab() == earlier.tokenizer.get_vocab()
    assert later.model.config.hidden_size == SMALL.hidden
    assert json.loads((tmp_path / "on" / "warmstart.jsonl").read_text())["loss"] < 0.9 * first_loss(made)
    renderer = renderer_of(earlier.tokenizer)
    assert imitation_loss(later.model, renderer) < imitation_loss(earlier.model, renderer)
    about = json.loads((tmp_path / "on" / "warmstart.json").read_text())
    assert about["start"] == json.loads((made / "warmstart.json").read_text())
    assert f"--start {made}" in about["command"]


def first_loss(made: Path) -> float:
    return json.loads((made / "warmstart.jsonl").read_text().splitlines()[0])["loss"]


def test_another_seed_makes_another_policy(made, tmp_path):
    _, *words = shlex.split(json.loads((made / "warmstart.json").read_text())["command"])
    assert cli.main([*words, "--seed", "1", "--out", str(tmp_path)]) == 0
    assert (tmp_path / WEIGHTS).read_bytes() != (made / WEIGHTS).read_bytes()


def test_the_smallest_vocabulary_is_enough(few_episodes, tmp_path):
    config = replace(SMALL, steps=1, vocab_size=warmstart.SMALLEST_VOCABULARY)
    check(config)
    warmstart.warmstart(config, tmp_path / "letters")
    assert load_policy(str(tmp_path / "letters"), dtype=torch.float32, device=torch.device("cpu"))


LEAST = {"seed": 0, "vocab_size": warmstart.SMALLEST_VOCABULARY}
INTEGERS = [name for name, value in asdict(WarmstartConfig()).items() if isinstance(value, int)]


@pytest.mark.parametrize("name", INTEGERS)
def test_a_number_that_makes_no_model_is_refused_by_the_name_of_its_flag(name):
    least = LEAST.get(name, 1)
    wide = WarmstartConfig(heads=1)  # else another number of heads would not divide `hidden`
    check(replace(wide, **{name: least * 2 if name == "hidden" else least}))
    flag = "--" + name.replace("_", "-")
    with pytest.raises(UserError, match=rf"^{flag}: {least - 1} is too small; give {least} or more$"):
        check(replace(wide, **{name: least - 1}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "huge"}, r"^--size: 'huge' is not a size of games or shops; use small or full or both$"),
        ({"env": "shop"}, r"^--env: 'shop' is not an environment; use household or webshop$"),
        ({"drills": 1.0}, r"^--drills: 1\.0 is no share of steps; give 0 or more, less than 1, such as 0\.05$"),
        ({"drills": -0.1}, r"^--drills: -0\.1 is no share"),
        ({"lr": 0.0}, r"^--lr: 0\.0 is not a learning rate; give a number above 0"),
        ({"lr": -1.0}, r"^--lr: -1\.0 is not"),
        ({"lr": math.inf}, r"^--lr: inf is not"),
        ({"lr": math.nan}, r"^--lr: nan is not"),
        ({"waste": 1.0}, r"^--waste: 1\.0 is no share of turns; give 0 or more, less than 1, such as 0\.4$"),
        ({"waste": -0.1}, r"^--waste: -0\.1 is no share"),
        ({"waste": math.nan}, r"^--waste: nan is no share"),
        ({"hidden": 100, "heads": 3}, r"^--hidden: 100 does not divide into 3 heads of even width; .* multiple of 6$"),
        ({"hidden": 9, "heads": 3}, r"^--hidden: 9 does not divide into 3 heads of even width"),
    ],
)
def test_a_setting_that_makes_no_model_is_refused_by_the_name_of_its_flag(settings, message):
    with pytest.raises(UserError, match=message):
        check(replace(WarmstartConfig(), **settings))
    check(WarmstartConfig())
    check(WarmstartConfig(waste=0.0))


def test_a_shop_has_lessons_of_its_own(few_episodes, tmp_path):
    config = replace(SMALL, env="webshop", steps=2, vocab_size=600)
    warmstart.warmstart(config, tmp_path / "shop")
    policy = load_policy(str(tmp_path / "shop"), dtype=torch.float32, device=torch.device("cpu"))
    renderer = Renderer(policy.tokenizer, style="compact", shorten=LESSONS["webshop"].shorten)
    shown = [renderer.decode(example.ids) for example in islice(examples(config, renderer), 200)]
    plays = [text for text in shown if kind_of(text) == "play"]
    skills = [text for text in shown if kind_of(text) == "skill"]
    assert len(plays) > 120
    assert all(" search[" in text for text in plays)
    assert any("Hint: when you shop for" in text for text in plays)
    assert skills
    assert all("When: you shop for" in text and "Do: choose" in text for text in skills)
    assert "--env webshop" in json.loads((tmp_path / "shop" / "warmstart.json").read_text())["command"]
    # Tokens that the shop says often are whole.
    assert len(renderer.literal(" click")) == len(renderer.literal(" color")) == 1


def kind_of(text: str) -> str:
    return {"Task": "play", "Solved": "skill"}.get(text.strip().partition(":")[0], "copy")


def test_drills_come_first_then_mostly_play_as_the_seed_decides(made):
    renderer = renderer_of(load_policy(str(made), dtype=torch.float32, device=torch.device("cpu")).tokenizer)
    config = replace(SMALL, max_turns=3)
    shown = list(islice(examples(config, renderer), 500))
    kinds = [kind_of(renderer.decode(example.ids)) for example in shown]
    before = np.cumsum([0, *(len(example.ids) for example in shown)])[:-1]
    opening = int((before < 0.05 * config.steps * config.rows * config.row_tokens).sum())
    assert 10 < opening < 50
    assert set(kinds[:opening]) == {"copy"}
    later = Counter(kinds[opening:])
    assert set(later) == {"play", "skill", "copy"}
    for kind in ("skill", "copy"):  # 5% of 400: three standard deviations are 3.3%
        assert later[kind] / later.total() == pytest.approx(0.05, abs=0.033)
    for example, same in zip(shown[:100], examples(config, renderer), strict=False):
        assert np.array_equal(same.ids, example.ids)
        assert np.array_equal(same.weight, example.weight)
    other = list(islice(examples(replace(config, seed=1), renderer), 200))
    assert not {tuple(example.ids) for example in shown} & {tuple(example.ids) for example in other}


def test_the_share_of_wasted_turns_reaches_every_demonstration(monkeypatch):
    asked: dict[str, set[float]] = {"play": set(), "solved": set()}

    def noted(name: str):
        real = getattr(LESSONS["household"], name)

        def made(index: int, **settings):
            asked[name].add(settings.get("waste", "left out"))
            return real(index, **settings)

        return made

    lessons = replace(LESSONS["household"], **{name: noted(name) for name in asked})
    monkeypatch.setitem(LESSONS, "household", lessons)
    config = replace(SMALL, max_turns=3, waste=0.125, steps=1)
    assert len(list(islice(examples(config, renderer_of(tokenizer())), 100))) == 100
    assert asked == {"play": {0.125}, "solved": {0.125}}
