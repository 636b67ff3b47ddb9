"""Search against rankings and scores of a real Lucene index, and the parts it is made of."""

import numpy as np
import pytest
from webshop_oracles import edge_oracle, edge_shop, oracle, shop

from siri.envs.webshop.analyzer import MAX_TOKEN, analyze
from siri.envs.webshop.porter import porter_stem
from siri.envs.webshop.search import _best, build_index, stored_length


def recorded_rankings() -> dict[str, list[str]]:
    data = oracle()
    found = dict(data["verl_agent_wrapper"]["rankings"])
    searches = [step["search"] for trace in data["traces"] for step in trace["steps"]]
    found |= {search["query"]: search["ranking"] for search in searches if search and "ranking" in search}
    return found | {row["query"]: row["ranking"] for row in data["search_table"]}


def agreement(rankings: dict[str, list[str]], depth: int) -> float:
    catalogue = shop()
    same = 0
    for query, ranking in rankings.items():
        ours = [catalogue.products[p].asin for p in catalogue.search(query)]
        same += ours[:depth] == ranking[:depth]
    return same / len(rankings)


def test_recorded_rankings() -> None:
    rankings = recorded_rankings()
    assert len(rankings) == 124
    assert agreement(rankings, 10) == 1.0
    assert agreement(rankings, 50) == 1.0


def test_recorded_scores() -> None:
    """They are recorded with four decimals."""
    catalogue, compared = shop(), 0
    for row in oracle()["search_table"]:
        ours = [score for _, score in catalogue.index.search(row["query"])]
        assert ours == pytest.approx(row["scores"], abs=2e-4)
        compared += len(ours)
    assert compared == 3129


def test_rankings_of_awkward_products() -> None:
    """Recorded over 15 products with texts that are much alike, so that ties and rounding decide."""
    catalogue, seen = edge_shop(), set[str]()
    for trace in edge_oracle()["traces"]:
        for search in (step.get("search") for step in trace["steps"]):
            if search and "ranking" in search:
                ours = [catalogue.products[p].asin for p in catalogue.search(search["query"])]
                assert ours == search["ranking"], search["query"]
                seen.add(search["query"])
    assert len(seen) > 10


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("5'2 x7'4 3.5oz 1,000.50 e.g o'neil a_b", "5'2 x7'4 3.5oz 1,000.50 e.g o'neil a_b"),
        ("t-shirt blue/gray a|b", "t shirt blue grai b"),
        ("Women's and the boys\u2019 X", "women boi x"),
        ("日本語 ひら カタカナ", "日 本 語 ひ ら カタカナ"),
        ("★★ ❤️ 👨‍💼 (red)", "★ ★ ❤️ 👨‍💼 red"),
        ("x.y 3.y ... -- '", "x.y 3 y"),
        ("", ""),
    ],
)
def test_terms(text: str, terms: str) -> None:
    assert analyze(text) == terms.split()


def test_long_tokens_are_cut() -> None:
    assert [len(term) for term in analyze("7" * (2 * MAX_TOKEN + 5))] == [MAX_TOKEN, MAX_TOKEN, 5]


@pytest.mark.parametrize(
    ("word", "stem"),
    # From the article of 1980, and from the two rules of later programs (the last two).
    [
        pair.split(":")
        for line in (
            "caresses:caress ponies:poni ties:ti cats:cat feed:feed agreed:agre plastered:plaster bled:bled",
            "motoring:motor sing:sing conflated:conflat troubled:troubl sized:size hopping:hop falling:fall",
            "hissing:hiss fizzed:fizz failing:fail filing:file happy:happi sky:sky relational:relat",
            "conditional:condit rational:ration valenci:valenc digitizer:digit conformabli:conform",
            "radicalli:radic vietnamization:vietnam operator:oper feudalism:feudal decisiveness:decis",
            "hopefulness:hope sensitiviti:sensit sensibiliti:sensibl triplicate:triplic formative:form",
            "electrical:electr goodness:good revival:reviv adjustable:adjust replacement:replac adoption:adopt",
            "probate:probat rate:rate cease:ceas controll:control roll:roll is:is by:by generalizations:gener",
            "oscillators:oscil possibly:possibl technology:technolog",
        )
        for pair in line.split()
    ],
)
def test_stems(word: str, stem: str) -> None:
    assert porter_stem(word) == stem


def test_lengths_in_one_byte() -> None:
    """Exact to 39, then in steps of 2, 4, 8 and so on, that double when eight of them have been taken."""
    expected, low, step = list(range(40)), 40, 2
    while low < 5000:
        expected += [low + step * n for n in range(8) for _ in range(step)]
        low, step = low + 8 * step, 2 * step
    assert [stored_length(n) for n in range(5000)] == expected[:5000]


def test_scores_are_bm25() -> None:
    """Recomputed from the formula in float64, documents shorter than 40 terms."""
    texts = ["red shoe red", "blue shoe", "red hat hat hat", "green sock with stripe"]
    index = build_index(zip(["d", "c", "b", "a"], texts, strict=True))
    found = dict(index.search("red shoe shoe"))
    mean = (3 + 2 + 4 + 3) / 4  # `with` is a stop word

    def part(df: int, tf: int, length: int) -> float:
        return np.log(1 + (4 - df + 0.5) / (df + 0.5)) * tf / (tf + 0.9 * (0.6 + 0.4 * length / mean))

    assert found == pytest.approx(
        {0: part(2, 2, 3) + 2 * part(2, 1, 3), 1: 2 * part(2, 1, 2), 2: part(2, 1, 4)}, rel=1e-6
    )


def test_equal_scores_stand_in_the_order_of_keys() -> None:
    keys = [f"k{(i * 37) % 80:02}" for i in range(80)]
    hits = build_index((key, "same words") for key in keys).search("words")
    assert [keys[document] for document, _ in hits] == [f"k{i:02}" for i in range(50)]
    assert len({score for _, score in hits}) == 1


@pytest.mark.parametrize("size", [30, 1024, 60_000, 300_001])
@pytest.mark.parametrize("levels", [1, 3, 1000, 10**9])
def test_the_best_of_many(size: int, levels: int) -> None:
    """Against sorting all of them; few levels make many equal scores, and nine in ten are zero."""
    rng = np.random.default_rng(size + levels)
    scores = (rng.integers(1, levels + 1, size) * (rng.random(size) < 0.1)).astype(np.float32)
    order = sorted(np.flatnonzero(scores).tolist(), key=lambda place: (-scores[place], place))
    assert _best(scores) == [(place, scores[place]) for place in order[:50]]
    assert _best(np.where(np.arange(size) < 20, scores, 0)) == [(p, scores[p]) for p in order if p < 20]


def test_nothing_to_find() -> None:
    assert build_index([]).search("x") == []
    assert build_index([("a", "")]).search("x") == []
    assert build_index([("a", "shoe")]).search("the ... --") == []
