"""A small kitchen with every quirk of the household rules, built by hand."""

from siri.envs.household import Game
from siri.envs.household.problem import Goal, Problem, Receptacle, Thing


def receptacle(kind: str, number: int, location: str, **flags: bool) -> Receptacle:
    return Receptacle(id=f"{kind}_bar_{number}", type=kind, location=location, **flags)


def thing(kind: str, number: int, *receptacles: str, location: str | None = None, **flags: bool) -> Thing:
    return Thing(
        id=f"{kind}_bar_{number}", type=kind, receptacles=receptacles, location=location, pickupable=True, **flags
    )


RECEPTACLES = (
    receptacle("CounterTop", 1, "loc_bar_counter"),
    receptacle("StoveBurner", 1, "loc_bar_counter"),
    Receptacle(id="Sink_bar_1_bar_SinkBasin", type="SinkBasin", location="loc_bar_sink"),
    receptacle("Microwave", 1, "loc_bar_microwave", openable=True),
    receptacle("Fridge", 1, "loc_bar_fridge", openable=True),
    receptacle("Cabinet", 1, "loc_bar_cabinet", openable=True, opened=True),
    receptacle("Cabinet", 2, "loc_bar_cabinet", openable=True),
)
THINGS = (
    thing(
        "Apple",
        1,
        "CounterTop_bar_1",
        location="loc_bar_counter",
        cleanable=True,
        heatable=True,
        coolable=True,
        sliceable=True,
    ),
    thing(
        "Apple", 2, "Fridge_bar_1", location="loc_bar_fridge", heatable=True, coolable=True, sliceable=True, cool=True
    ),
    # In two receptacles at once, as in official games.
    thing("Knife", 1, "CounterTop_bar_1", "Cabinet_bar_1", location="loc_bar_counter", cleanable=True),
    thing("Mug", 1, "StoveBurner_bar_1", location="loc_bar_counter", cleanable=True, heatable=True, container=True),
    Thing(
        id="Spoon_bar_1",
        type="Spoon",
        receptacles=("StoveBurner_bar_1",),
        inside=("Mug_bar_1",),
        location="loc_bar_counter",
        pickupable=True,
    ),
    # A lamp shut away, and one that can be carried.
    Thing(
        id="DeskLamp_bar_1",
        type="DeskLamp",
        receptacles=("Cabinet_bar_2",),
        location="loc_bar_cabinet",
        toggleable=True,
    ),
    thing("DeskLamp", 2, "CounterTop_bar_1", location="loc_bar_counter", toggleable=True),
    Thing(id="Window_bar_1", type="Window", location="loc_bar_window"),
)
PORTABLE = ("Apple", "Knife", "Mug", "Spoon", "DeskLamp")


def kitchen(goal: Goal) -> Problem:
    return Problem(
        name="kitchen",
        start="loc_bar_middle",
        locations=tuple(
            f"loc_bar_{place}" for place in ("middle", "counter", "sink", "microwave", "fridge", "cabinet", "window")
        ),
        receptacles=RECEPTACLES,
        things=THINGS,
        can_contain=frozenset(
            (r.type, kind) for r in RECEPTACLES for kind in PORTABLE if (r.type, kind) != ("Fridge", "Spoon")
        ),
        goal=goal,
    )


def kitchen_game(
    task_type: str = "pick_and_place_simple", object_type: str = "Statue", target_type: str = "Shelf"
) -> Game:
    """The default goal names what the kitchen does not hold, so that play never ends."""
    goal = Goal(task_type=task_type, object_type=object_type, target_type=target_type)
    return Game(id=f"{task_type}-kitchen", task="do it.", task_type=task_type, walkthrough=(), problem=kitchen(goal))
