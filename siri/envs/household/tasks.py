"""What official tasks are like: pairs, copies and sentences, measured on the 3553 train games of ALFWorld.

`benchmarks/household_statistics.py tables` printed the text blocks.
"""

import re
from itertools import accumulate
from typing import NamedTuple

from siri.engine.errors import UserError
from siri.envs.household.problem import Goal
from siri.envs.household.rooms import numbers, rows

# Room, task type: number of games for each object and target.
_PAIRS = """
bathroom pick_and_place_simple: Candle>Cabinet=7 Candle>Cart=4 Candle>CounterTop=6 Candle>Drawer=3 Candle>Dresser=2
  Candle>SideTable=3 Candle>Toilet=24 Cloth>Cart=3 Cloth>CounterTop=3 Cloth>Drawer=2 Cloth>Toilet=2 DishSponge>Cart=2
  DishSponge>Toilet=4 HandTowel>Cabinet=5 HandTowel>CounterTop=6 HandTowel>GarbageCan=9 HandTowel>Toilet=9
  SoapBar>Cart=1 SoapBar>Drawer=2 SoapBar>GarbageCan=3 SoapBottle>Cabinet=6 SoapBottle>Cart=2 SoapBottle>CounterTop=4
  SoapBottle>Drawer=3 SoapBottle>GarbageCan=13 SoapBottle>SideTable=3 SoapBottle>Toilet=19 SprayBottle>Cabinet=4
  SprayBottle>CounterTop=7 SprayBottle>Drawer=3 SprayBottle>GarbageCan=15 SprayBottle>Toilet=21 TissueBox>GarbageCan=3
  TissueBox>Toilet=4 ToiletPaper>Drawer=3 ToiletPaper>GarbageCan=4 ToiletPaper>Shelf=2 ToiletPaper>Toilet=6
  ToiletPaper>ToiletPaperHanger=42
bathroom pick_clean_then_place_in_recep: Cloth>Cabinet=2 Cloth>Cart=4 Cloth>CounterTop=7 Cloth>Drawer=13
  Cloth>Dresser=2 Cloth>Shelf=3 Cloth>Toilet=16 DishSponge>Cabinet=2 DishSponge>Cart=2 DishSponge>CounterTop=4
  DishSponge>Drawer=4 DishSponge>Shelf=3 DishSponge>Toilet=3 SoapBar>Cabinet=17 SoapBar>Cart=5 SoapBar>CounterTop=17
  SoapBar>Drawer=10 SoapBar>GarbageCan=19 SoapBar>Shelf=3 SoapBar>Toilet=13
bathroom pick_two_obj_and_place: Candle>Cabinet=14 Candle>CounterTop=2 Candle>Drawer=13 Candle>Shelf=3 Candle>Toilet=3
  Cloth>Drawer=2 Cloth>Shelf=2 Cloth>Toilet=2 DishSponge>Cart=4 DishSponge>GarbageCan=1 DishSponge>Toilet=2
  HandTowel>CounterTop=6 HandTowel>Toilet=10 SoapBar>Cabinet=2 SoapBar>Cart=2 SoapBar>CounterTop=1 SoapBar>Drawer=3
  SoapBar>GarbageCan=3 SoapBar>Shelf=2 SoapBar>Toilet=3 SoapBottle>Cabinet=6 SoapBottle>Cart=4 SoapBottle>CounterTop=8
  SoapBottle>Drawer=3 SoapBottle>GarbageCan=9 SoapBottle>Toilet=14 SprayBottle>Cabinet=7 SprayBottle>Cart=3
  SprayBottle>CounterTop=7 SprayBottle>Drawer=3 SprayBottle>Dresser=3 SprayBottle>GarbageCan=22 SprayBottle>Toilet=13
  TissueBox>Cart=3 TissueBox>Drawer=3 TissueBox>Toilet=2 ToiletPaper>Cabinet=12 ToiletPaper>CounterTop=2
  ToiletPaper>Drawer=13 ToiletPaper>Shelf=4 ToiletPaper>SideTable=2 ToiletPaper>Toilet=10
bedroom look_at_obj_in_light: AlarmClock>DeskLamp=41 Book>DeskLamp=30 Bowl>DeskLamp=17 CD>DeskLamp=33
  CellPhone>DeskLamp=9 CreditCard>DeskLamp=5 KeyChain>DeskLamp=4 Laptop>DeskLamp=17 Mug>DeskLamp=4 Pen>DeskLamp=18
  Pencil>DeskLamp=23 Pillow>DeskLamp=39 Statue>DeskLamp=6 TissueBox>DeskLamp=6 Vase>DeskLamp=2 Watch>DeskLamp=3
bedroom pick_and_place_simple: AlarmClock>Desk=10 AlarmClock>DiningTable=3 AlarmClock>Dresser=2 AlarmClock>Shelf=6
  AlarmClock>SideTable=1 Book>ArmChair=3 Book>Bed=6 Book>Cabinet=3 Book>Desk=11 Book>Dresser=3 Book>SideTable=2
  CD>DiningTable=3 CD>Dresser=5 CD>Safe=6 CD>Shelf=10 CD>SideTable=6 CellPhone>ArmChair=5 CellPhone>Bed=10
  CellPhone>Desk=10 CellPhone>DiningTable=2 CellPhone>Drawer=5 CellPhone>Dresser=6 CellPhone>Safe=6 CellPhone>Shelf=2
  CellPhone>SideTable=5 CreditCard>Desk=5 CreditCard>DiningTable=3 CreditCard>Shelf=6 KeyChain>ArmChair=5
  KeyChain>Desk=6 KeyChain>Dresser=3 KeyChain>Safe=3 KeyChain>Shelf=3 KeyChain>SideTable=6 Laptop>Bed=3 Laptop>Desk=3
  Mug>Dresser=2 Mug>SideTable=1 Pen>Desk=3 Pen>Drawer=3 Pen>Shelf=8 Pen>SideTable=6 Pencil>Desk=9 Pencil>Dresser=2
  Pencil>GarbageCan=2 Pencil>Shelf=5 Pencil>SideTable=6 Pillow>ArmChair=2 RemoteControl>Dresser=3 Statue>Dresser=3
  TissueBox>Dresser=3 Watch>DiningTable=2
bedroom pick_two_obj_and_place: AlarmClock>Desk=12 AlarmClock>Dresser=5 AlarmClock>Shelf=2 AlarmClock>SideTable=2
  Book>Bed=12 Book>Desk=8 Book>DiningTable=3 Book>Drawer=5 Book>Dresser=6 Bowl>Desk=3 Bowl>Dresser=3 CD>Desk=2
  CD>Drawer=8 CD>Dresser=2 CD>GarbageCan=5 CD>Safe=2 CD>Shelf=6 CD>SideTable=1 CellPhone>Bed=17 CellPhone>Desk=2
  CellPhone>DiningTable=3 CellPhone>Drawer=7 CellPhone>Dresser=5 CellPhone>Safe=3 CellPhone>Shelf=3
  CellPhone>SideTable=2 CreditCard>ArmChair=3 CreditCard>Desk=2 CreditCard>DiningTable=5 CreditCard>Dresser=1
  CreditCard>Safe=1 CreditCard>Shelf=2 CreditCard>SideTable=2 KeyChain>Desk=1 KeyChain>Drawer=6 KeyChain>Dresser=4
  KeyChain>SideTable=7 Laptop>Bed=2 Laptop>Desk=6 Mug>Cabinet=2 Mug>Desk=3 Pen>Desk=2 Pen>Drawer=5 Pen>Dresser=6
  Pen>GarbageCan=3 Pen>Shelf=2 Pen>SideTable=7 Pencil>Desk=12 Pencil>Drawer=8 Pencil>Shelf=3 Pencil>SideTable=2
  Pillow>ArmChair=2 TissueBox>Shelf=3 TissueBox>SideTable=3 Vase>SideTable=1 Watch>Dresser=2 Watch>Shelf=3
kitchen pick_and_place_simple: Bowl>Fridge=3 Bread>Microwave=3 ButterKnife>Drawer=3 ButterKnife>SideTable=3
  DishSponge>Cabinet=3 Egg>Fridge=2 Egg>Microwave=2 Fork>Drawer=2 Glassbottle>Cabinet=2 Glassbottle>CounterTop=2
  Glassbottle>DiningTable=3 Glassbottle>Fridge=2 Kettle>Cabinet=3 Kettle>Shelf=3 Kettle>StoveBurner=3
  Knife>SideTable=1 Lettuce>CounterTop=2 Pan>CounterTop=3 Pan>DiningTable=2 PepperShaker>CounterTop=2
  PepperShaker>Drawer=5 PepperShaker>Shelf=3 PepperShaker>SideTable=2 Potato>Microwave=3 SaltShaker>DiningTable=3
  SoapBottle>GarbageCan=1 Tomato>DiningTable=1 Tomato>Microwave=7 WineBottle>DiningTable=3 WineBottle>Shelf=2
kitchen pick_clean_then_place_in_recep: Apple>DiningTable=9 Apple>Fridge=4 Apple>Microwave=10 Apple>SideTable=2
  Bowl>Cabinet=2 Bowl>DiningTable=5 Bowl>Fridge=9 Bowl>Microwave=5 Bowl>Shelf=5 ButterKnife>CounterTop=8
  ButterKnife>DiningTable=7 ButterKnife>Drawer=8 ButterKnife>SideTable=3 Cup>Cabinet=3 Cup>Microwave=8 Cup>Shelf=6
  Cup>SideTable=3 DishSponge>Shelf=5 Egg>CounterTop=3 Egg>DiningTable=7 Egg>Fridge=2 Egg>GarbageCan=2 Egg>Microwave=6
  Egg>SideTable=3 Fork>CounterTop=3 Fork>DiningTable=5 Fork>Drawer=10 Fork>SideTable=5 Kettle>Cabinet=14
  Kettle>CounterTop=5 Kettle>DiningTable=8 Kettle>Shelf=4 Kettle>StoveBurner=16 Knife>CounterTop=6 Knife>DiningTable=8
  Knife>Drawer=14 Knife>SideTable=5 Ladle>Cabinet=14 Ladle>CounterTop=6 Ladle>DiningTable=8 Ladle>Drawer=10
  Lettuce>CounterTop=12 Lettuce>DiningTable=5 Lettuce>Fridge=7 Lettuce>GarbageCan=4 Lettuce>SideTable=3
  Mug>CoffeeMachine=32 Pan>Cabinet=2 Pan>CounterTop=6 Pan>DiningTable=3 Pan>Fridge=5 Pan>StoveBurner=12
  Plate>Cabinet=2 Plate>CounterTop=2 Plate>DiningTable=3 Plate>Fridge=4 Plate>Microwave=3 Plate>Shelf=8
  Pot>DiningTable=1 Pot>Fridge=3 Pot>Shelf=3 Pot>StoveBurner=9 Potato>CounterTop=2 Potato>DiningTable=3
  Potato>Fridge=2 Potato>GarbageCan=3 Potato>Microwave=12 Potato>SideTable=3 Spatula>CounterTop=8
  Spatula>DiningTable=13 Spatula>Drawer=5 Spatula>SideTable=3 Spoon>CounterTop=3 Spoon>DiningTable=9 Spoon>Drawer=8
  Spoon>SideTable=6 Tomato>CounterTop=4 Tomato>DiningTable=5 Tomato>Fridge=4 Tomato>GarbageCan=3 Tomato>Microwave=6
  Tomato>SideTable=4
kitchen pick_cool_then_place_in_recep: Apple>CounterTop=4 Apple>DiningTable=7 Apple>GarbageCan=11 Apple>Microwave=19
  Apple>SideTable=3 Bowl>Cabinet=15 Bowl>CounterTop=9 Bowl>DiningTable=5 Bowl>Microwave=9 Bowl>Shelf=11
  Bread>CounterTop=22 Bread>DiningTable=15 Bread>Microwave=3 Cup>Cabinet=12 Cup>DiningTable=6 Cup>Microwave=11
  Cup>Shelf=9 Cup>SideTable=2 Egg>CounterTop=6 Egg>GarbageCan=2 Egg>Microwave=15 Egg>SideTable=2 Lettuce>CounterTop=10
  Lettuce>DiningTable=15 Lettuce>GarbageCan=12 Mug>Cabinet=9 Mug>CoffeeMachine=47 Mug>Microwave=3 Mug>Shelf=12
  Mug>SideTable=3 Pan>Cabinet=6 Pan>CounterTop=9 Pan>DiningTable=12 Pan>StoveBurner=19 Plate>Cabinet=9
  Plate>CounterTop=2 Plate>DiningTable=4 Plate>Microwave=2 Plate>Shelf=8 Pot>Cabinet=8 Pot>CounterTop=11
  Pot>DiningTable=13 Pot>Shelf=5 Pot>StoveBurner=20 Potato>CounterTop=7 Potato>DiningTable=6 Potato>GarbageCan=12
  Potato>Microwave=16 Potato>SideTable=3 Tomato>CounterTop=4 Tomato>DiningTable=6 Tomato>GarbageCan=5
  Tomato>Microwave=19 WineBottle>Cabinet=5 WineBottle>CounterTop=5 WineBottle>DiningTable=4 WineBottle>GarbageCan=4
kitchen pick_heat_then_place_in_recep: Apple>CounterTop=8 Apple>DiningTable=7 Apple>Fridge=19 Apple>GarbageCan=11
  Apple>SideTable=7 Bread>CounterTop=3 Bread>DiningTable=3 Bread>Fridge=3 Bread>GarbageCan=3 Cup>Cabinet=34
  Cup>CounterTop=11 Cup>DiningTable=3 Cup>Fridge=14 Cup>Shelf=5 Cup>SideTable=4 Egg>CounterTop=10 Egg>DiningTable=10
  Egg>Fridge=22 Egg>GarbageCan=19 Egg>SideTable=9 Mug>Cabinet=29 Mug>CoffeeMachine=55 Mug>Shelf=12 Mug>SideTable=6
  Plate>Cabinet=8 Plate>CounterTop=13 Plate>DiningTable=5 Plate>Fridge=8 Plate>Shelf=3 Plate>SideTable=2
  Potato>CounterTop=10 Potato>DiningTable=7 Potato>Fridge=19 Potato>GarbageCan=17 Potato>SideTable=7
  Tomato>CounterTop=11 Tomato>DiningTable=8 Tomato>Fridge=20 Tomato>GarbageCan=5 Tomato>SideTable=9
kitchen pick_two_obj_and_place: Apple>GarbageCan=1 Bread>Fridge=3 Cup>Cabinet=3 Cup>CounterTop=3 Cup>Microwave=6
  Cup>Shelf=2 Egg>Microwave=4 Glassbottle>Fridge=2 Glassbottle>Shelf=1 Kettle>Cabinet=3 Kettle>DiningTable=3
  Knife>Drawer=2 Ladle>Drawer=4 Lettuce>Fridge=11 Pan>CounterTop=2 PepperShaker>Cabinet=5 PepperShaker>DiningTable=8
  PepperShaker>Drawer=3 PepperShaker>Shelf=3 PepperShaker>SideTable=3 Pot>Shelf=3 Potato>Fridge=3 Potato>Microwave=1
  SaltShaker>Cabinet=9 SaltShaker>CounterTop=2 SaltShaker>Drawer=9 SaltShaker>Shelf=3 SaltShaker>SideTable=2
  Spatula>Drawer=6 Spoon>CounterTop=1 Spoon>Drawer=2 Spoon>SideTable=2 Tomato>CounterTop=3 WineBottle>Cabinet=4
  WineBottle>GarbageCan=2
living look_at_obj_in_light: Box>DeskLamp=9 Laptop>DeskLamp=3 Newspaper>DeskLamp=14 Pillow>DeskLamp=8 Plate>DeskLamp=3
  Statue>DeskLamp=5 TissueBox>DeskLamp=4 Vase>DeskLamp=2 Watch>DeskLamp=3
living pick_and_place_simple: Book>ArmChair=6 Book>CoffeeTable=3 Book>Sofa=10 Bowl>CoffeeTable=2 Box>ArmChair=9
  Box>DiningTable=2 Box>Dresser=2 Box>Sofa=6 CreditCard>ArmChair=8 CreditCard>CoffeeTable=3 CreditCard>Drawer=2
  CreditCard>Sofa=6 KeyChain>ArmChair=4 KeyChain>CoffeeTable=1 KeyChain>Drawer=3 KeyChain>Dresser=3 KeyChain>Ottoman=3
  KeyChain>Sofa=12 Laptop>ArmChair=3 Laptop>Ottoman=6 Laptop>SideTable=3 Laptop>Sofa=3 Newspaper>ArmChair=3
  Newspaper>GarbageCan=3 Newspaper>Ottoman=6 Newspaper>Sofa=5 Pillow>ArmChair=8 Pillow>Ottoman=3 Pillow>Sofa=4
  Plate>Dresser=3 RemoteControl>ArmChair=15 RemoteControl>CoffeeTable=3 RemoteControl>Dresser=3
  RemoteControl>Ottoman=2 RemoteControl>Sofa=7 Statue>CoffeeTable=16 Statue>SideTable=3 TissueBox>CoffeeTable=3
  TissueBox>SideTable=3 Vase>CoffeeTable=4 Vase>Safe=3 Vase>SideTable=3 Watch>CoffeeTable=8 Watch>Shelf=2
living pick_two_obj_and_place: Book>Sofa=3 Bowl>CoffeeTable=3 Box>CoffeeTable=3 CellPhone>ArmChair=3
  CellPhone>Dresser=3 CellPhone>Sofa=5 CreditCard>ArmChair=23 CreditCard>CoffeeTable=3 CreditCard>Drawer=3
  CreditCard>Dresser=1 CreditCard>Sofa=6 KeyChain>ArmChair=5 KeyChain>CoffeeTable=1 KeyChain>Ottoman=1 KeyChain>Safe=1
  KeyChain>Shelf=2 KeyChain>Sofa=6 Laptop>Ottoman=3 Newspaper>ArmChair=10 Newspaper>CoffeeTable=7 Newspaper>Drawer=1
  Newspaper>GarbageCan=3 Newspaper>Sofa=15 Pen>Dresser=3 Pencil>CoffeeTable=3 Pillow>ArmChair=3 Pillow>Ottoman=2
  Plate>CoffeeTable=5 RemoteControl>ArmChair=19 RemoteControl>CoffeeTable=7 RemoteControl>Ottoman=5
  RemoteControl>Sofa=12 Statue>CoffeeTable=3 Statue>DiningTable=2 Statue>Dresser=2 Statue>SideTable=3
  TissueBox>CoffeeTable=4 TissueBox>DiningTable=2 TissueBox>Drawer=3 TissueBox>GarbageCan=3 Vase>CoffeeTable=8
  Vase>Desk=2 Vase>DiningTable=3 Watch>CoffeeTable=3 Watch>Dresser=2 Watch>SideTable=3 WateringCan>Shelf=3
"""

# Task type: percent of games with 0, 1, 2, 3, 4 or more things of the sought type.
_COPIES = """
look_at_obj_in_light: 0 35 29 22 14
pick_and_place_simple: 0 40 29 19 12
pick_clean_then_place_in_recep: 0 33 32 21 14
pick_cool_then_place_in_recep: 0 44 28 20 8
pick_heat_then_place_in_recep: 0 30 28 25 17
pick_two_obj_and_place: 0 0 46 32 21
"""

TOOL = {
    "pick_clean_then_place_in_recep": "SinkBasin",
    "pick_heat_then_place_in_recep": "Microwave",
    "pick_cool_then_place_in_recep": "Fridge",
}
"""The receptacle type that cleans, heats or cools, for the task types that ask for it."""

SENTENCES: dict[str, dict[str, int]] = {
    "pick_and_place_simple": {"put some {} on {}.": 402, "put a {} in {}.": 388},
    "look_at_obj_in_light": {"look at {} under the {}.": 155, "examine the {} with the {}.": 153},
    "pick_clean_then_place_in_recep": {"clean some {} and put it in {}.": 327, "put a clean {} in {}.": 323},
    "pick_heat_then_place_in_recep": {"heat some {} and put it in {}.": 249, "put a hot {} in {}.": 210},
    "pick_cool_then_place_in_recep": {"cool some {} and put it in {}.": 270, "put a cool {} in {}.": 263},
    "pick_two_obj_and_place": {"put two {} in {}.": 413, "find two {} and put them in {}.": 400},
}
"""Sentence forms of each task type, to be filled with object and target in lower case, and how many games use them."""

_FORMS = {
    task_type: tuple(re.compile(re.escape(form).replace(r"\{\}", r"(\w+)")) for form in forms)
    for task_type, forms in SENTENCES.items()
}


class Errand(NamedTuple):
    """What a task sentence asks for, in the words of the game."""

    task_type: str
    thing: str
    """Type to look for, in lower case."""
    target: str
    """Receptacle type to put it in, or lamp type to use, in lower case."""


def read_sentence(task: str) -> Errand:
    """The errand in a task sentence. Raises UserError for a sentence of no known form."""
    for task_type, forms in _FORMS.items():
        for form in forms:
            if match := form.fullmatch(task):
                return Errand(task_type, match[1], match[2])
    raise UserError(f"task sentence '{task}': it must have the form of an ALFWorld task, such as 'put a mug in desk.'")


def _goals() -> dict[tuple[str, Goal], int]:
    found: dict[tuple[str, Goal], int] = {}
    for head, words in rows(_PAIRS):
        room, task_type = head.split()
        for pair, games in numbers(words).items():
            thing, target = pair.split(">")
            found[room, Goal(task_type=task_type, object_type=thing, target_type=target)] = games
    return found


GOALS = _goals()
"""(room, goal) to the number of official train games that have it."""
COPIES = {task_type: tuple(accumulate(map(int, words))) for task_type, words in rows(_COPIES)}
"""Task type to cumulative weights of 0, 1, 2.. things of the sought type."""
