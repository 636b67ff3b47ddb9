"""What a tiny policy imitates of shopping. Each episode is a function of its index alone, and plays a shop of its own.

The demonstrator searches for what the customer names, takes a product whose title and price fit, goes on to the next
page or back where that helps, chooses options and buys. It is careless: at each decision it does well only with some
probability, because a policy that does all of it right has nothing to find out. Half of the episodes carry hints, which
name groups of options; those it never leaves out. So the policy learns to act on a skill block, and the skill that a
success teaches, which groups to choose for which things, is one that helps it.
"""

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from random import Random
from typing import Any

from siri.demonstrations import Play, Sizes
from siri.engine.environment import Observation
from siri.envs.webshop.brief import UNCHANGED, brief
from siri.envs.webshop.catalogue import Catalogue, load_catalogue
from siri.envs.webshop.engine import WebShopEnv
from siri.envs.webshop.goals import Goal
from siri.envs.webshop.pages import BUY, NEXT, PREVIOUS, SUB_PAGES
from siri.envs.webshop.procedural import ProceduralAttributes, procedural_records, title_nouns
from siri.envs.webshop.procedural_words import KINDS, Kind
from siri.envs.webshop.product import Product
from siri.envs.webshop.shops import NUM_PRODUCTS, ShopSize, invented_shop
from siri.prompts import skill_answer, skill_request, skill_text

SHOPS = range(1, 9)
"""Seeds of the shops played in. Runs shop in the one of seed 0."""
CORNER_SHOPS = 0.5
"""Share of episodes in a shop that is reduced to a few products. Its pages are short, so that more of what is read has
to do with what is done: with whole shops alone nothing had been learnt of copying after 450 steps (loss 0.87). The
first two stages of the shipped policy had 0.75; whole shops are what runs play in."""
LARGEST_CORNER_SHOP = 6
HINTED = 0.5
"""Share of played episodes with hints."""
NOISE = 0.03
"""Share of random clicks. At 0 a policy that slips once never gets back on its way."""
MISSES = 0.1
"""Share of clicks on what the page does not have. Without them a policy that misses once goes on missing: 54 of 126
episodes ended so at temperature 0.4."""
OWN_KIND = 0.7
"""Share of hints about the kind of product that the customer wants."""
ALL_GROUPS = 0.7
"""Share of hints that name every group of options of their kind."""
MAX_TURNS = 15
"""Most turns of an episode that a skill is written from: as many as runs give."""
_PER_VISIT = 2
"""Products looked at, and pages of results, after which the demonstrator makes do with what it has."""


class Shopper:
    """Chooses actions for one goal. It reads what the pages show, and knows which kind a product is of."""

    def __init__(self, goal: Goal, *, rng: Random, hinted: Sequence[str], waste: float, misses: float) -> None:
        """`hinted` are groups it chooses for certain; `waste` is the chance that it decides badly, `misses` that it
        clicks on what is not there."""
        self._goal = goal
        self._rng = rng
        self._hinted = frozenset(hinted)
        self._waste = waste
        self._misses = misses
        self._tried: list[str] = []
        self._leave_out: dict[str, bool] = {}
        self.noisy = False
        """The last action was drawn at random: not to be imitated."""

    def act(self, env: WebShopEnv, observation: Observation) -> str:
        clicks = [action for action in observation.admissible or () if action.startswith("click[")]
        chance = self._rng.random() if clicks else math.inf
        self.noisy = chance < NOISE + self._misses
        if self.noisy:
            return self._rng.choice(clicks) if chance < NOISE else self._miss(env, clicks)
        state = env.state
        if state.kind == "search":
            return f"search[{', '.join(self._goal.attributes)} {self._goal.query}]"
        if state.kind in SUB_PAGES:
            return f"click[{PREVIOUS}]"
        return self._pick(env) if state.kind == "results" else self._choose(env)

    def _is_careless(self) -> bool:
        return self._rng.random() < self._waste

    def _miss(self, env: WebShopEnv, clicks: Sequence[str]) -> str:
        """A click on a product that is not listed, or on a value that is not offered."""
        if env.state.kind == "results":
            things = [f"p{index}" for index in range(NUM_PRODUCTS["small"])]
        else:
            things = [value for kind in KINDS for _, values in kind.groups for value in values]
        return self._rng.choice([action for action in map(_click, things) if action not in clicks])

    def _pick(self, env: WebShopEnv) -> str:
        """Of a page of results: the first product that fits, or, carelessly, one of the first three of its kind."""
        catalogue, number = env.catalogue, env.state.number or 1
        listed = [catalogue.number[name.upper()] for name in env.clickables if name.upper() in catalogue.number]
        products = [catalogue.products[p] for p in listed]
        kind = [
            product for product in products if product.query == self._goal.query and product.asin not in self._tried
        ]
        fitting = [product for product in kind if fits(product, self._goal)]
        if kind and self._is_careless():
            return _click(self._rng.choice(kind[:3]).asin)
        if not fitting and len(products) == 10 and number < _PER_VISIT:
            return _click(NEXT)
        chosen = next(iter(fitting or kind or products), None)
        return _click(chosen.asin) if chosen else f"search[{self._goal.query}]"

    def _choose(self, env: WebShopEnv) -> str:
        """On the page of a product: the next option, then the purchase; or back, where what is wanted is not to be had
        and the demonstrator notices."""
        state, goal = env.state, self._goal
        assert state.asin is not None, "a product is open"
        offered = dict(env.catalogue.products[env.catalogue.number[state.asin]].options)
        wanted = dict(wanted_options(goal))
        if state.asin not in self._tried:
            self._tried.append(state.asin)
            self._leave_out = {group: group not in self._hinted and self._is_careless() for group in wanted}
            lacking = any(value not in offered.get(group, ()) for group, value in wanted.items())
            if lacking and len(self._tried) <= _PER_VISIT and not self._is_careless():
                return _click(PREVIOUS)
        for group, values in offered.items():
            value = wanted.get(group)
            if value in values and not self._leave_out[group] and state.options.get(group) != value:
                return _click(value)
        return _click(BUY)


def fits(product: Product, goal: Goal) -> bool:
    """What the list of results tells: the title names every quality, and the price, or the lower end of its range, is
    within the limit."""
    lowest = float(product.price_tag.split(" to ")[0].removeprefix("$"))
    return lowest <= goal.price_upper and all(quality in product.title.lower() for quality in goal.attributes)


def wanted_options(goal: Goal) -> list[tuple[str, str]]:
    """(group, value) pairs of an invented goal."""
    return [option for option in goal.options if isinstance(option, tuple)]


def play(index: int, *, size: Sizes, max_turns: int, waste: float) -> Play:
    """The demonstrator's episode number `index`."""
    rng = Random(f"shop/play/{size}/{index}")
    return _play(rng, size=size, max_turns=max_turns, hinted=HINTED, waste=waste, misses=MISSES)


def solved(index: int, *, size: Sizes, waste: float) -> Play:
    """A solved episode without hints, number `index`: to write a skill from.

    Its demonstrator is careless with a chance of anything from 0 to `waste`: skills are asked for before and after
    reinforcement learning has made the policy careful. It never clicks on what is not there, as what was refused is
    not shown to who is asked for a skill.
    """
    rng = Random(f"shop/solved/{size}/{index}")
    for _ in count():
        played = _play(rng, size=size, max_turns=MAX_TURNS, hinted=0.0, waste=waste * rng.random(), misses=0.0)
        if played.observations[-1].success:
            return played
    raise AssertionError("unreachable: every second episode or so is solved")


def _play(rng: Random, *, size: Sizes, max_turns: int, hinted: float, waste: float, misses: float) -> Play:
    drawn: ShopSize = rng.choice(("small", "full")) if size == "both" else size
    catalogue = _shop(rng, drawn)
    goal = catalogue.goals[rng.randrange(len(catalogue.goals))]
    hints = [_hint(rng, goal) for _ in range(rng.choice((1, 2, 3)))] if rng.random() < hinted else []
    env = WebShopEnv(catalogue, goal)
    groups = [group for _, named in hints for group in named]
    shopper = Shopper(goal, rng=rng, hinted=groups, waste=waste, misses=misses)
    observations = [env.reset()]
    actions: list[str] = []
    imitate: list[bool] = []
    while len(actions) < max_turns and not observations[-1].done:
        actions.append(shopper.act(env, observations[-1]))
        imitate.append(not shopper.noisy)
        observations.append(env.step(actions[-1]))
    return Play(
        task=goal.instruction,
        hints=tuple(skill_text(*_skill(query, groups)) for query, groups in hints),
        observations=tuple(observations),
        actions=tuple(actions),
        imitate=tuple(imitate),
    )


def _shop(rng: Random, size: ShopSize) -> Catalogue:
    seed = rng.choice(SHOPS)
    if rng.random() >= CORNER_SHOPS:
        return invented_shop(size, seed)
    records = _records(size, seed)
    first = rng.choice(records)
    kept = [first]
    for _ in range(rng.randint(1, LARGEST_CORNER_SHOP) - 1):
        # Things of one kind have to be told apart by their qualities.
        same = rng.random() < 0.5
        kept.append(rng.choice([it for it in records if it["query"] == first["query"]] if same else records))
    rng.shuffle(kept)
    attributes = ProceduralAttributes(NUM_PRODUCTS[size], seed)
    return load_catalogue(kept, attributes, title_nouns=title_nouns, seed=rng.randrange(1 << 30))


@lru_cache(maxsize=16)
def _records(size: ShopSize, seed: int) -> list[dict[str, Any]]:
    return list(procedural_records(NUM_PRODUCTS[size], seed))


def _hint(rng: Random, goal: Goal) -> tuple[str, list[str]]:
    """What is wanted, and which groups to choose: of this goal's kind or of another, all of them or one."""
    own: Kind = next(kind for kind in KINDS if kind.query == goal.query)
    kind = own if rng.random() < OWN_KIND else rng.choice(KINDS)
    groups = [name for name, _ in kind.groups]
    return kind.query, groups if rng.random() < ALL_GROUPS else [rng.choice(groups)]


def _skill(query: str, groups: Sequence[str]) -> tuple[str, str]:
    """(condition, strategy) of "choose these". No invented wish says "shop", so the condition is found by the thing."""
    return f"you shop for {query}", f"choose {', '.join(groups)}"


def skill_of(played: Play) -> tuple[str, str]:
    """What a solved episode teaches: for which things which groups are to be chosen. Told by task and actions alone."""
    wish, _, wanted = played.task.partition(" with ")
    query = max((kind.query for kind in KINDS if re.search(rf"\b{kind.query}(,|$)", wish)), key=len)
    chosen = [group for group, value in re.findall(r"([a-z ]+): ([^,]+)", wanted) if _click(value) in played.actions]
    return _skill(query, [group.removeprefix(" and ").strip() for group in chosen])


def corpus_text(played: Play) -> list[str]:
    """Every text of an episode as the dialogue writes it, for the tokenizer."""
    return [
        f"Task: {played.task}\n" + "".join(f"Hint: {hint}\n" for hint in played.hints),
        skill_request(played.task, played.actions),
        skill_answer(*_skill("everything", [])),
        *played.actions,
        *(brief(observation.text) for observation in played.observations),
        *UNCHANGED,
    ]


def _click(thing: str) -> str:
    return f"click[{thing.lower()}]"
