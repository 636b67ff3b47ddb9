"""What official rooms are like: numbers measured on the 3553 train games of ALFWorld (arXiv 2010.03768).

`benchmarks/household_statistics.py tables` printed the text blocks; a comment says what each holds. Type names are
those of the PDDL files without `Type`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from siri.envs.household.problem import Thing

ROOMS = ("kitchen", "living", "bedroom", "bathroom")

# Room, receptacle type: twenty equally likely numbers of them, over the games whose task does not ask for that type.
_RECEPTACLES = """
kitchen Cabinet: 2 4 8 9 9 10 10 11 11 13 13 13 13 16 18 20 20 21 23 27
kitchen CoffeeMachine: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
kitchen CounterTop: 1 1 1 1 2 2 2 2 2 2 2 2 3 3 3 3 3 3 4 4
kitchen DiningTable: 0 0 0 0 0 0 0 0 0 0 1 1 1 1 1 1 1 2 2 3
kitchen Drawer: 0 1 1 3 3 3 3 4 4 4 5 5 5 6 6 8 9 12 12 27
kitchen Fridge: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
kitchen GarbageCan: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
kitchen Microwave: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
kitchen Safe: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1
kitchen Shelf: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 3 3 3
kitchen SideTable: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1
kitchen SinkBasin: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
kitchen StoveBurner: 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 6
kitchen Toaster: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
living ArmChair: 0 0 1 1 1 1 1 1 1 1 1 1 1 1 2 2 2 2 2 2
living Cabinet: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 4 8
living CoffeeTable: 0 0 0 0 1 1 1 1 1 1 1 1 1 1 1 1 1 2 2 2
living Desk: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
living DiningTable: 0 0 0 0 0 0 0 0 0 0 0 1 1 1 1 1 1 1 2 2
living Drawer: 0 0 0 0 0 1 1 2 4 4 4 4 4 4 4 6 7 7 8 21
living Dresser: 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 1 1 1 1 1
living GarbageCan: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
living Ottoman: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1
living Safe: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
living Shelf: 0 0 0 0 0 0 0 0 0 0 0 0 0 1 2 4 6 8 8 14
living SideTable: 0 0 0 0 1 1 1 1 1 1 2 2 2 2 2 3 3 3 3 5
living Sofa: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 2 2 2 2
living TVStand: 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 1 1 1 1 2
bedroom ArmChair: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 3
bedroom Bed: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 2 2 2
bedroom Cabinet: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 2 4
bedroom CounterTop: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1
bedroom Desk: 0 0 0 0 0 0 0 1 1 1 1 1 1 1 1 1 1 1 2 2
bedroom DiningTable: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1
bedroom Drawer: 0 2 2 2 2 2 3 3 4 4 5 5 6 6 8 10 11 11 13 17
bedroom Dresser: 0 0 0 0 0 0 0 0 0 0 0 0 1 1 1 1 1 1 1 2
bedroom GarbageCan: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
bedroom LaundryHamper: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 1 1 1 1
bedroom Safe: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 1
bedroom Shelf: 0 0 0 0 0 0 0 1 1 1 1 1 2 2 5 5 6 7 9 12
bedroom SideTable: 0 0 0 0 0 0 0 1 1 1 1 1 1 1 1 1 1 2 2 2
bathroom BathtubBasin: 0 0 0 0 0 0 0 1 1 1 1 1 1 1 1 1 1 1 1 1
bathroom Cabinet: 0 0 0 0 0 0 0 0 0 0 0 0 0 3 4 4 4 4 4 5
bathroom Cart: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
bathroom CounterTop: 0 0 0 1 1 1 1 1 1 1 1 1 1 1 1 1 1 2 2 2
bathroom Drawer: 0 0 0 0 0 0 0 0 0 0 1 2 2 4 4 4 6 6 8 8
bathroom Dresser: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1
bathroom GarbageCan: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
bathroom HandTowelHolder: 1 1 1 1 1 1 1 1 1 1 1 1 2 2 2 2 2 2 2 4
bathroom Shelf: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 1 2 4
bathroom SideTable: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1
bathroom SinkBasin: 1 1 1 1 1 1 1 1 1 1 2 2 2 2 2 2 2 2 2 2
bathroom Toilet: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
bathroom ToiletPaperHanger: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
bathroom TowelHolder: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 2 2 2 2 2 2
"""

# Room, thing type, percent of games with 0/1/2/.. of it where the task does not ask for it; then how many of 1000 such
# things start in a receptacle of a type, in the games that have one.
_THINGS = """
kitchen Apple 1/33/32/34: DiningTable=269 Fridge=249 CounterTop=245 SideTable=171 Microwave=133 GarbageCan=123
  SinkBasin=92
kitchen Book 89/7/3/1: CounterTop=649 DiningTable=194 Cabinet=144 Drawer=55 Shelf=45
kitchen Bowl 0/35/35/30: Cabinet=358 DiningTable=267 Fridge=210 CounterTop=206 Shelf=82 SideTable=38 SinkBasin=32
  Microwave=27
kitchen Bread 0/55/32/12: CounterTop=554 DiningTable=546 Fridge=125 SideTable=61 GarbageCan=5
kitchen ButterKnife 5/36/35/24: CounterTop=585 DiningTable=458 SideTable=165 Drawer=85 SinkBasin=56
kitchen CellPhone 89/4/4/3: DiningTable=484 Drawer=427 CounterTop=405
kitchen CreditCard 91/3/3/3: CounterTop=462 Drawer=369 Shelf=232
kitchen Cup 1/37/32/30: DiningTable=253 Cabinet=231 Fridge=216 CounterTop=211 SideTable=170 Shelf=103 SinkBasin=95
  Microwave=76
kitchen DishSponge 1/33/33/33: CounterTop=258 Cabinet=240 DiningTable=227 Drawer=219 Shelf=130 SinkBasin=75
  SideTable=67 GarbageCan=55
kitchen Egg 1/34/35/30: Fridge=257 CounterTop=239 DiningTable=208 SideTable=141 SinkBasin=131 GarbageCan=126
  Microwave=125
kitchen Fork 2/35/34/29: CounterTop=441 DiningTable=411 Drawer=227 SideTable=150 SinkBasin=88
kitchen Glassbottle 77/8/7/7: Cabinet=307 DiningTable=300 CounterTop=269 Shelf=135 SinkBasin=94 Fridge=90
  GarbageCan=72
kitchen HousePlant 64/33/3: CounterTop=774 DiningTable=466
kitchen Kettle 50/23/18/9: StoveBurner=415 CounterTop=255 Cabinet=244 DiningTable=174 SinkBasin=17 Shelf=15
kitchen Knife 2/37/34/27: CounterTop=484 DiningTable=439 Drawer=211 SideTable=81 SinkBasin=48
kitchen Ladle 67/12/13/9: CounterTop=413 DiningTable=308 Cabinet=251 Drawer=188 SinkBasin=22
kitchen Lettuce 3/41/34/22: DiningTable=495 CounterTop=411 Fridge=236 SideTable=141 SinkBasin=51 GarbageCan=10
kitchen Mug 2/37/37/24: CounterTop=333 DiningTable=221 Cabinet=186 Fridge=172 SideTable=104 Microwave=93 Shelf=77
  SinkBasin=72 CoffeeMachine=9
kitchen Pan 0/70/26/4: StoveBurner=483 CounterTop=321 DiningTable=102 Cabinet=90 Fridge=53
kitchen PaperTowelRoll 65/35: CounterTop=571 DiningTable=413 Shelf=300 SideTable=228 GarbageCan=153
kitchen Pen 94/2/2/2: DiningTable=630 CounterTop=394 Drawer=211 GarbageCan=50
kitchen Pencil 93/3/3/1: Drawer=408 DiningTable=402 CounterTop=299 GarbageCan=100
kitchen PepperShaker 0/30/33/37: Cabinet=332 CounterTop=305 DiningTable=295 SideTable=218 Shelf=158 Drawer=152
kitchen Plate 3/44/33/19: Cabinet=401 CounterTop=304 DiningTable=284 Fridge=92 Shelf=77 SinkBasin=23 SideTable=11
  Microwave=6
kitchen Pot 0/53/37/9: StoveBurner=698 CounterTop=155 DiningTable=88 Fridge=51 Cabinet=40 Shelf=21 SinkBasin=5
kitchen Potato 1/37/33/28: DiningTable=285 CounterTop=284 Fridge=271 SideTable=117 SinkBasin=111 Microwave=108
  GarbageCan=63
kitchen SaltShaker 0/36/33/31: CounterTop=319 Cabinet=318 DiningTable=310 SideTable=226 Drawer=144 Shelf=141
kitchen Sink 89/11: CounterTop=1000
kitchen SoapBottle 1/35/34/29: DiningTable=359 CounterTop=323 Cabinet=305 Shelf=167 SideTable=135 GarbageCan=103
  Drawer=14
kitchen Spatula 0/36/36/27: CounterTop=447 DiningTable=426 Drawer=219 SinkBasin=88 SideTable=58
kitchen Spoon 1/34/34/30: DiningTable=383 CounterTop=376 Drawer=285 SideTable=163 SinkBasin=111
kitchen SprayBottle 93/2/3/2: DiningTable=395 CounterTop=330 Cabinet=330 GarbageCan=118
kitchen Statue 85/6/8/2: CounterTop=514 Shelf=441 DiningTable=119
kitchen Tomato 1/34/33/32: DiningTable=344 Fridge=339 CounterTop=297 SideTable=148 GarbageCan=91 SinkBasin=68
kitchen Vase 85/0/7/8: CounterTop=341 Shelf=317 Cabinet=312 DiningTable=104
kitchen Window 96/0/4: CounterTop=1000
kitchen WineBottle 59/15/13/13: CounterTop=371 DiningTable=355 Cabinet=255 GarbageCan=89 Shelf=86 Fridge=15
  SideTable=10
living Book 77/11/7/5: Dresser=363 CoffeeTable=327 DiningTable=238 Sofa=187 ArmChair=119 SideTable=85 TVStand=45
  Drawer=14
living Bowl 90/4/4/2: DiningTable=548 CoffeeTable=312 TVStand=286 Shelf=233 SideTable=129
living Box 15/59/22/4: DiningTable=518 CoffeeTable=277 Sofa=246 Cabinet=231 Desk=222 Shelf=106 SideTable=99 Ottoman=91
  TVStand=89 Dresser=88 ArmChair=35
living Candle 91/2/2/6: SideTable=506 CoffeeTable=282 DiningTable=200 TVStand=184 Drawer=176 Dresser=118
living CellPhone 81/8/6/6: Dresser=270 Ottoman=212 Shelf=211 CoffeeTable=201 Desk=200 SideTable=181 DiningTable=176
  TVStand=158 Sofa=152 Drawer=126 ArmChair=53
living CreditCard 0/30/33/37: Sofa=201 DiningTable=196 TVStand=194 CoffeeTable=182 Dresser=178 Drawer=172 Desk=167
  ArmChair=152 Shelf=140 SideTable=129 Ottoman=89
living Curtains 96/4: SideTable=1000
living DeskLamp 84/16: SideTable=1000 CoffeeTable=196
living HousePlant 34/66: SideTable=593 CoffeeTable=299 Dresser=237 TVStand=205 DiningTable=122
living KeyChain 9/41/33/16: CoffeeTable=244 TVStand=209 Drawer=206 Desk=200 SideTable=194 DiningTable=157 Dresser=147
  Safe=143 Shelf=138 Sofa=125 Ottoman=121 ArmChair=99
living Laptop 0/66/27/7: DiningTable=406 CoffeeTable=297 Sofa=276 Dresser=229 Desk=182 TVStand=141 Ottoman=122
  SideTable=92 ArmChair=51
living Newspaper 44/26/17/12: DiningTable=322 Dresser=291 Shelf=246 CoffeeTable=223 Sofa=217 Ottoman=184 SideTable=157
  TVStand=110 ArmChair=87 Drawer=24
living Pen 81/6/7/7: Dresser=389 CoffeeTable=342 Shelf=242 SideTable=202 TVStand=176 DiningTable=159 Drawer=57
  GarbageCan=41
living Pencil 84/6/5/5: SideTable=325 Shelf=321 CoffeeTable=295 Dresser=180 TVStand=145 DiningTable=103 Drawer=102
  GarbageCan=64
living Pillow 0/89/11: Sofa=808 ArmChair=219 Ottoman=16
living Plate 66/16/13/5: DiningTable=619 Shelf=402 CoffeeTable=245 SideTable=130 TVStand=107 Dresser=68
living RemoteControl 3/38/34/25: CoffeeTable=298 Dresser=226 DiningTable=223 TVStand=223 Desk=200 Sofa=197
  SideTable=161 Ottoman=124 ArmChair=102 Shelf=90 Drawer=48
living Statue 4/27/35/31/0/0/0/4: Shelf=385 DiningTable=378 CoffeeTable=329 SideTable=263 Dresser=256 TVStand=254
  Desk=111
living Television 29/71: TVStand=1000 Dresser=935 CoffeeTable=107 SideTable=37
living TissueBox 69/9/10/11: CoffeeTable=494 DiningTable=303 Shelf=289 TVStand=222 SideTable=188 Dresser=103 Drawer=43
  GarbageCan=15
living Vase 54/7/11/18/8/0/3: Dresser=712 Shelf=530 DiningTable=272 CoffeeTable=260 SideTable=208 Desk=188 TVStand=150
  Cabinet=108
living Watch 53/12/17/18: CoffeeTable=284 TVStand=280 Drawer=273 Dresser=269 DiningTable=268 Shelf=241 SideTable=213
living WateringCan 91/5/2/1: CoffeeTable=529 Shelf=433 SideTable=88
bedroom AlarmClock 1/50/32/18: DiningTable=574 Desk=497 Dresser=394 CounterTop=341 Shelf=317 SideTable=301
bedroom Book 0/45/33/22: Bed=524 Desk=292 DiningTable=210 Cabinet=153 CounterTop=150 Drawer=125 Dresser=118
  ArmChair=100 SideTable=63 Shelf=24
bedroom Bowl 57/27/12/5: Desk=634 Shelf=377 DiningTable=359 Dresser=300 CounterTop=289 SideTable=59
bedroom Box 91/8: Desk=576 Shelf=424
bedroom CD 8/38/29/25: DiningTable=514 Dresser=305 Drawer=297 Desk=289 SideTable=201 Cabinet=148 Shelf=111
  ArmChair=101 GarbageCan=82
bedroom CellPhone 0/33/34/33: Bed=306 DiningTable=280 Desk=261 Dresser=223 CounterTop=186 Drawer=178 ArmChair=175
  SideTable=152 Shelf=116 Safe=79 Cabinet=47
bedroom CreditCard 0/33/34/33: Drawer=300 Shelf=273 DiningTable=267 Dresser=262 Desk=260 SideTable=245 CounterTop=216
  ArmChair=172
bedroom DeskLamp 44/53/3: SideTable=525 Dresser=454 Desk=424 Shelf=160
bedroom HousePlant 77/23: Cabinet=1000 Shelf=630 Dresser=367 Desk=270
bedroom KeyChain 3/34/33/30: DiningTable=328 Dresser=301 Drawer=280 Desk=260 SideTable=254 Shelf=230 ArmChair=175
  Safe=158 Cabinet=51 CounterTop=36
bedroom Laptop 0/52/35/13: Bed=739 Desk=266 CounterTop=262 DiningTable=168 Dresser=84 ArmChair=58
bedroom Mirror 95/5: CounterTop=1000 Dresser=462
bedroom Mug 52/20/16/13: Desk=545 DiningTable=451 Shelf=304 Dresser=281 SideTable=268 Cabinet=208 CounterTop=205
bedroom Pen 0/29/36/35: DiningTable=492 Desk=409 Dresser=330 CounterTop=277 Shelf=232 SideTable=226 Drawer=193
  GarbageCan=17
bedroom Pencil 0/34/34/32: DiningTable=500 Desk=348 CounterTop=316 SideTable=272 Dresser=258 Shelf=253 Drawer=191
  GarbageCan=50
bedroom Pillow 0/42/48/10: Bed=993 ArmChair=29
bedroom RemoteControl 88/5/4/3: Desk=387 Drawer=344 CounterTop=333 DiningTable=179 SideTable=147 Dresser=121
  ArmChair=99 Shelf=28
bedroom Statue 86/9/3/1: Desk=488 Shelf=431 Dresser=427 SideTable=241
bedroom TeddyBear 73/27: Bed=1000
bedroom Television 97/3: Dresser=1000
bedroom TissueBox 88/5/4/3: DiningTable=806 Desk=454 Drawer=255 Shelf=151 SideTable=142 Dresser=57
bedroom Vase 95/1/3/2: Shelf=446 Dresser=359 Desk=213 SideTable=91
bedroom Watch 94/1/3/2: DiningTable=400 Drawer=309 Desk=274 Dresser=214 Shelf=214 SideTable=146
bedroom Window 93/3/4: Shelf=700 Dresser=300
bathroom Bathtub 96/4: BathtubBasin=1000
bathroom Candle 3/40/33/25: SideTable=483 CounterTop=360 Cabinet=338 Toilet=320 Shelf=290 Drawer=235 Cart=226
  Dresser=154
bathroom Cloth 0/39/33/28: Cabinet=460 BathtubBasin=418 Drawer=256 CounterTop=194 Cart=178 Shelf=165 Dresser=151
  SinkBasin=90 Toilet=33 SideTable=25
bathroom DishSponge 80/6/8/6: Drawer=270 CounterTop=232 BathtubBasin=214 Cabinet=191 Shelf=188 Cart=159 SinkBasin=122
  Toilet=81 GarbageCan=43
bathroom FloorLamp 97/0/3: SinkBasin=1000
bathroom HandTowel 0/84/16: HandTowelHolder=961 CounterTop=46
bathroom HousePlant 96/4: SideTable=1000
bathroom Mirror 90/10: CounterTop=1000
bathroom PaperTowelRoll 87/13: CounterTop=453 Shelf=400 Toilet=313 Cart=263 GarbageCan=108
bathroom ShowerGlass 97/3: CounterTop=1000
bathroom Sink 78/19/3: SinkBasin=587 CounterTop=413
bathroom SoapBar 3/36/32/29: SideTable=357 Cabinet=273 CounterTop=225 Cart=207 Drawer=196 BathtubBasin=183
  SinkBasin=177 Shelf=165 Toilet=157 GarbageCan=69
bathroom SoapBottle 4/41/32/23: Cabinet=451 Shelf=360 CounterTop=349 Dresser=303 Toilet=255 SideTable=250 Cart=155
  GarbageCan=94 Drawer=55
bathroom SprayBottle 0/39/29/32: SideTable=479 Cart=427 CounterTop=383 Cabinet=374 Toilet=285 Shelf=259 Dresser=219
  GarbageCan=110
bathroom TissueBox 77/11/7/5: SideTable=846 Shelf=521 CounterTop=434 Drawer=269 Cabinet=258 Cart=232 Toilet=28
bathroom ToiletPaper 1/25/56/17: SideTable=267 Cabinet=262 CounterTop=260 Toilet=237 Shelf=231 Cart=208 Drawer=208
  Dresser=200 ToiletPaperHanger=127 GarbageCan=95
bathroom Towel 0/86/14: TowelHolder=974 CounterTop=31
"""

# Percent of receptacles of a type that can be opened. All of those start closed.
_OPENABLE = """
Cabinet=83 Drawer=84 Fridge=100 Microwave=100 Safe=83
"""

# Percent of receptacles of the first type that share the place of an earlier one of the second type.
_JOINS = """
Cabinet+Cabinet=8 CounterTop+CoffeeMachine=10 DiningTable+DiningTable=3 Drawer+Desk=3 Drawer+Drawer=12
Dresser+Drawer=21 GarbageCan+Cabinet=3 Safe+Drawer=3 Shelf+Cabinet=3 Shelf+Shelf=7 SideTable+Drawer=4
SinkBasin+Drawer=3 StoveBurner+StoveBurner=42 TVStand+GarbageCan=8 TVStand+Shelf=43 Toaster+CounterTop=30
ToiletPaperHanger+GarbageCan=3 TowelHolder+HandTowelHolder=3
"""

# Receptacle type: thing types that may be put there.
_CAN_CONTAIN = """
ArmChair: Book Box CellPhone Cloth CreditCard KeyChain Laptop Newspaper Pillow RemoteControl
BathtubBasin: Cloth DishSponge HandTowel SoapBar
Bed: BaseballBat BasketBall Book CellPhone Laptop Pillow TennisRacket
Cabinet: Book Bowl Box CD Candle Cloth Cup DishSponge Glassbottle HandTowel Kettle Ladle Mug Newspaper Pan
  PepperShaker Plate Plunger Pot SaltShaker SoapBar SoapBottle SprayBottle TissueBox ToiletPaper Vase WateringCan
  WineBottle
Cart: Candle Cloth DishSponge HandTowel Plunger SoapBar SoapBottle SprayBottle TissueBox ToiletPaper
CoffeeMachine: Mug
CoffeeTable: Book Bowl Box Candle CellPhone CreditCard KeyChain Laptop Newspaper Pen Pencil Plate RemoteControl Statue
  TissueBox Vase Watch WateringCan
CounterTop: AlarmClock Apple Book Bowl Bread ButterKnife CD Candle CellPhone Cloth CreditCard Cup DishSponge Egg Fork
  Glassbottle HandTowel Kettle KeyChain Knife Ladle Laptop Lettuce Mug Pan Pen Pencil PepperShaker Plate Pot Potato
  RemoteControl SaltShaker SoapBar SoapBottle Spatula Spoon SprayBottle Statue TissueBox ToiletPaper Tomato Vase
  WineBottle
Desk: AlarmClock BasketBall Book Bowl Box CD CellPhone Cloth CreditCard KeyChain Laptop Mug Pen Pencil RemoteControl
  Statue TennisRacket TissueBox Vase Watch WateringCan
DiningTable: AlarmClock Apple BaseballBat BasketBall Book Bowl Box Bread ButterKnife CD Candle CellPhone Cloth
  CreditCard Cup DishSponge Egg Fork Glassbottle Kettle KeyChain Knife Ladle Laptop Lettuce Mug Newspaper Pan Pen
  Pencil PepperShaker Plate Pot Potato RemoteControl SaltShaker SoapBottle Spatula Spoon SprayBottle Statue
  TennisRacket TissueBox Tomato Vase Watch WateringCan WineBottle
Drawer: Book ButterKnife CD Candle CellPhone Cloth CreditCard DishSponge Fork HandTowel KeyChain Knife Ladle Newspaper
  Pen Pencil PepperShaker RemoteControl SaltShaker SoapBar SoapBottle Spatula Spoon SprayBottle TissueBox ToiletPaper
  Watch WateringCan
Dresser: AlarmClock BasketBall Book Bowl Box CD Candle CellPhone Cloth CreditCard KeyChain Laptop Mug Newspaper Pen
  Pencil Plate RemoteControl SprayBottle Statue TennisRacket TissueBox ToiletPaper Vase Watch WateringCan
Fridge: Apple Bowl Bread Cup Egg Glassbottle Lettuce Mug Pan Plate Pot Potato Tomato WineBottle
GarbageCan: Apple Bread CD Cloth DishSponge Egg HandTowel Lettuce Newspaper Pen Pencil Potato SoapBar SoapBottle
  SprayBottle TissueBox ToiletPaper Tomato WineBottle
HandTowelHolder: HandTowel
LaundryHamper: Cloth
Microwave: Apple Bowl Bread Cup Egg Glassbottle Mug Plate Potato Tomato
Ottoman: Book Box CellPhone CreditCard KeyChain Laptop Newspaper Pillow RemoteControl
Safe: CD CellPhone CreditCard KeyChain Statue Vase
Shelf: AlarmClock Book Bowl Box CD Candle CellPhone Cloth CreditCard Cup DishSponge Glassbottle HandTowel Kettle
  KeyChain Mug Newspaper Pen Pencil PepperShaker Plate Pot RemoteControl SaltShaker SoapBar SoapBottle SprayBottle
  Statue TissueBox ToiletPaper Vase Watch WateringCan WineBottle
SideTable: AlarmClock Apple BaseballBat BasketBall Book Bowl Box Bread ButterKnife CD Candle CellPhone Cloth
  CreditCard Cup DishSponge Egg Fork HandTowel Kettle KeyChain Knife Laptop Lettuce Mug Newspaper Pan Pen Pencil
  PepperShaker Plate Pot Potato RemoteControl SaltShaker SoapBar SoapBottle Spatula Spoon SprayBottle Statue
  TennisRacket TissueBox ToiletPaper Tomato Vase Watch WateringCan WineBottle
SinkBasin: Apple Bowl ButterKnife Cloth Cup DishSponge Egg Fork Glassbottle HandTowel Kettle Knife Ladle Lettuce Mug
  Pan Plate Pot Potato SoapBar Spatula Spoon Tomato
Sofa: Book Box CellPhone CreditCard KeyChain Laptop Newspaper Pillow RemoteControl
StoveBurner: Kettle Pan Pot
TVStand: TissueBox
Toilet: Candle Cloth DishSponge HandTowel SoapBar SoapBottle SprayBottle TissueBox ToiletPaper
ToiletPaperHanger: ToiletPaper
TowelHolder: Towel
"""

# What can be done with things, by type.
_FLAGS = """
fixed: Bathtub Curtains HousePlant Mirror ShowerGlass Sink Television Window
pickupable: AlarmClock Book CD Candle CellPhone CreditCard Glassbottle HandTowel KeyChain Laptop Newspaper
  PaperTowelRoll Pen Pencil PepperShaker Pillow RemoteControl SaltShaker SoapBottle SprayBottle Statue TeddyBear
  TissueBox ToiletPaper Towel Vase Watch WateringCan
pickupable cleanable: ButterKnife Cloth DishSponge Fork Kettle Knife Ladle SoapBar Spatula Spoon
pickupable cleanable coolable container: Bowl Pan Pot
pickupable cleanable coolable sliceable: Lettuce
pickupable cleanable heatable coolable container: Cup Mug Plate
pickupable cleanable heatable coolable sliceable: Apple Egg Potato Tomato
pickupable container: Box
pickupable coolable: WineBottle
pickupable heatable coolable sliceable: Bread
toggleable: DeskLamp FloorLamp
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """How a thing type occurs in a room."""

    cumulative_copies: tuple[int, ...]
    """Cumulative weights of 0, 1, 2.. copies."""
    places: dict[str, int]
    """Weight of each receptacle type to start in; to be normalised over the types present."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """One kind of room."""

    receptacles: dict[str, tuple[int, ...]]
    """Receptacle type to equally likely numbers of it."""
    things: dict[str, Stock]


def rows(table: str) -> Iterator[tuple[str, list[str]]]:
    """Rows `head: words` of a table; lines that start with a space continue the row before."""
    for row in table.strip().replace("\n ", "").split("\n"):
        head, _, words = row.partition(": ")
        yield head, words.split()


def numbers(words: list[str]) -> dict[str, int]:
    """`Cabinet=3 Drawer=5` as a dictionary."""
    return {name: int(value) for name, _, value in (word.partition("=") for word in words)}


def _rooms() -> dict[str, Room]:
    found = {room: Room(receptacles={}, things={}) for room in ROOMS}
    for head, words in rows(_RECEPTACLES):
        room, kind = head.split()
        found[room].receptacles[kind] = tuple(map(int, words))
    for head, words in rows(_THINGS):
        room, kind, copies = head.split()
        cumulative = tuple(accumulate(map(int, copies.split("/"))))
        found[room].things[kind] = Stock(cumulative_copies=cumulative, places=numbers(words))
    return found


def _joins() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for pair, percent in numbers(_JOINS.split()).items():
        kind, other = pair.split("+")
        found.setdefault(kind, {})[other] = percent / 100
    return found


def _things() -> dict[str, Thing]:
    found: dict[str, Thing] = {}
    for flags, kinds in rows(_FLAGS):
        for kind in kinds:
            found[kind] = Thing(
                id="",
                type=kind,
                pickupable="pickupable" in flags,
                cleanable="cleanable" in flags,
                heatable="heatable" in flags,
                coolable="coolable" in flags,
                sliceable="sliceable" in flags,
                container="container" in flags,
                toggleable="toggleable" in flags,
            )
    return found


BY_ROOM = _rooms()
OPENABLE = {kind: percent / 100 for kind, percent in numbers(_OPENABLE.split()).items()}
"""Chance that a receptacle of the type can be opened; 0 for types left out."""
JOINS = _joins()
"""Receptacle type to (type of an earlier receptacle, chance to share its place)."""
CAN_CONTAIN = {kind: frozenset(things) for kind, things in rows(_CAN_CONTAIN)}
THINGS = _things()
"""Thing type to a thing of it, still without an id and a place."""


def vocabulary() -> frozenset[str]:
    """Names of all receptacles and things, as the texts of the games have them: `sinkbasin`."""
    return frozenset(name.lower() for room in BY_ROOM.values() for name in (*room.receptacles, *room.things))
