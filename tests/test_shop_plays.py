"""What the warm start imitates of shopping: play that reads the pages, follows hints, and errs as often as told."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from siri import shop_plays
from siri.demonstrations import Play
from siri.envs.webshop import procedural_catalogue
from siri.envs.webshop.brief import UNCHANGED
from siri.envs.webshop.procedural_words import KINDS
from siri.prompts import skill_text
from siri.screening import Rejection, ScreenRules, parse_skill, screen
from siri.shop_plays import corpus_text, fits, play, skill_of, solved
from siri.skills import bm25

SCREEN = ScreenRules(max_chars=240, max_tokens=48, dedup_threshold=0.9, allow_numbers=False, ascii_only=True)


def plays(number: int, **changes: object) -> list[Play]:
    settings = {"size": "small", "max_turns": 15, "waste": 0.4} | changes
    return [play(index, **settings) for index in range(number)]  # type: ignore[arg-type]


def share(those: list[Play]) -> float:
    return sum(played.observations[-1].success for played in those) / len(those)


def wish(played: Play) -> tuple[str, dict[str, str]]:
    """(what is wanted, group -> value), read off the task sentence."""
    wanted, _, rest = played.task.partition(" with ")
    pairs = re.findall(r"(?:^|, and )([a-z ]+): ([^,]+)", rest)
    return wanted, dict(pairs)


def test_play_is_a_function_of_its_index_in_shops_that_no_run_has() -> None:
    first = plays(40)
    assert first == plays(40)
    assert len({played.task for played in first}) > 35
    assert play(3, size="full", max_turns=15, waste=0.4) != first[3]
    assert len(play(3, size="small", max_turns=2, waste=0.4).actions) == 2
    assert 0 not in shop_plays.SHOPS
    runs = procedural_catalogue(100, seed=0)
    titles = {(product.asin, product.title) for product in runs.products}
    known = {(product.asin, product.title) for product in procedural_catalogue(100, seed=1).products}
    assert len(titles & known) < 4


def test_what_is_imitated_is_accepted_and_spelled_as_it_stands_in_what_was_read() -> None:
    refused = []
    for played in plays(300):
        for before, action, imitate, after in zip(
            played.observations, played.actions, played.imitate, played.observations[1:], strict=False
        ):
            refused.append(not after.action_valid)
            if not after.action_valid:
                assert not imitate
                assert after.text == before.text
            elif action.startswith("search["):
                wanted, _ = wish(played)
                assert action[len("search[") : -1] in wanted or action[len("search[") : -1] in KIND_NAMES
            else:
                assert action in (before.admissible or ())
    # A first search is never missed: of 5 actions 4 can be.
    assert sum(refused) / len(refused) == pytest.approx(0.8 * shop_plays.MISSES, abs=0.02)


KIND_NAMES = {kind.query for kind in KINDS}


def test_carelessness_is_what_it_fails_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shop_plays, "NOISE", 0.0)
    monkeypatch.setattr(shop_plays, "MISSES", 0.0)
    best = plays(300, waste=0.0)
    # A wish that nothing in the list fits by its lowest price is lost, and so is one whose product has a price range
    # that begins within the limit and ends above it.
    assert share(best) > 0.9
    assert all(all(played.imitate) for played in best)
    shares = [share([p for p in plays(400, waste=waste) if not p.hints]) for waste in (0.0, 0.3, 0.6)]
    assert shares[0] > 0.9
    assert 0.25 < shares[1] < 0.55
    assert shares[2] < 0.25
    assert all(played.observations[-1].done for played in best)


def test_hints_are_followed_and_help() -> None:
    shown = plays(800)
    hinted = [played for played in shown if played.hints]
    plain = [played for played in shown if not played.hints]
    assert len(hinted) / len(shown) == pytest.approx(0.5, abs=0.06)
    assert share(hinted) > share(plain) + 0.25
    chosen: dict[bool, list[bool]] = {True: [], False: []}
    for played in shown:
        told = {group for hint in played.hints for group in hint.partition(": choose ")[2].split(", ")}
        _, wanted = wish(played)
        bought = played.observations[-2].text
        if not played.observations[-1].done or not all(played.imitate):
            continue
        for group, value in wanted.items():
            if f"'{value}'" in bought:
                chosen[group in told].append(f"click[{value}]" in played.actions)
    assert all(chosen[True])
    assert sum(chosen[False]) / len(chosen[False]) == pytest.approx(0.6, abs=0.06)


def test_a_price_range_fits_by_its_lower_end() -> None:
    catalogue = procedural_catalogue(100)
    goal = next(goal for goal in catalogue.goals if goal.price_upper < 900)
    product = catalogue.products[goal.product]
    for tag, fitting in (("$1.0 to $950.0", True), ("$950.0 to $990.0", False), (f"${goal.price_upper}", True)):
        assert fits(replace(product, price_tag=tag), goal) is fitting
    assert not fits(replace(product, title="Another Thing"), goal)


def test_random_clicks_are_not_imitated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shop_plays, "NOISE", 1.0)
    for played in plays(20):
        for imitate, before in zip(played.imitate, played.observations, strict=False):
            assert imitate is (before.text == "'Search'")  # where nothing can be clicked


def test_a_success_teaches_what_was_wanted_and_chosen() -> None:
    seen = Counter()
    known = {kind.query: [name for name, _ in kind.groups] for kind in KINDS}
    for index in range(120):
        played = solved(index, size="small", waste=0.4)
        assert played == solved(index, size="small", waste=0.4)
        assert played.observations[-1].success
        assert all(after.action_valid for after in played.observations[1:])
        assert not played.hints
        condition, strategy = skill_of(played)
        kind = condition.removeprefix("you shop for ")
        wanted, options = wish(played)
        assert wanted.endswith(f" {kind}")
        groups = strategy.removeprefix("choose ").split(", ")
        assert groups == [group for group in sorted(known[kind]) if f"click[{options[group]}]" in played.actions]
        text = f"When: {condition}\nDo: {strategy}"
        read = set(re.findall(r"\w+", played.task.lower()))
        assert screen(text, SCREEN, known=(), count_tokens=lambda line: 1, vocabulary=read) == (condition, strategy)
        assert parse_skill(text) == (condition, strategy)
        seen[kind] += 1
    assert len(seen) > 20


def test_skills_of_other_things_are_no_duplicates_and_are_found_by_their_thing() -> None:
    kept: list[tuple[str, str]] = []
    for kind in KINDS:
        skill = f"you shop for {kind.query}", "choose " + ", ".join(name for name, _ in kind.groups)
        text = f"When: {skill[0]}\nDo: {skill[1]}"
        read = set(re.findall(r"\w+", text.lower()))
        found = screen(text, SCREEN, known=kept, count_tokens=lambda line: 1, vocabulary=read)
        if found == Rejection.DUPLICATE:  # of its ten words one is another: "women" for "men", "dress" for "t"
            assert kind.query.endswith("shirts")
            assert any(condition.endswith("shirts") for condition, _ in kept)
        else:
            assert found == skill
            kept.append(skill)
    conditions = [condition for condition, _ in kept]
    assert len(conditions) == len(KINDS) - 2
    for played in plays(60):
        scores = bm25(played.task, conditions)
        best = conditions[max(range(len(scores)), key=scores.__getitem__)].removeprefix("you shop for ")
        assert wish(played)[0].split()[-1].removeprefix("t-") == best.split()[-1].removeprefix("t-")
    assert bm25("I need a thing, find me it, I want to buy it", conditions) == [0.0] * len(conditions)


def test_the_corpus_has_every_text_of_the_dialogue() -> None:
    played = next(p for p in plays(20) if p.hints)
    texts = "\n".join(corpus_text(played))
    for text in (
        played.task,
        *played.actions,
        *played.hints,
        "Write a skill.",
        "When: you shop for",
        "Do: choose",
        *UNCHANGED,
    ):
        assert text in texts
    assert "buy now" in texts
    assert skill_text("you shop for desks", "choose color") == "when you shop for desks: choose color"
