"""Tables of the invented shop: kinds of products, what can be said of them, and what can be chosen."""

from dataclasses import dataclass

# category | levels of the product category | name in titles | query | dollars from..to | qualities | option groups
# `{who}` stands for Men or Women; such a kind exists once for each.
_KINDS = """
fashion | Clothing & Shoes / {who} / Clothing / Shirts | T-Shirt | t-shirts | 9..35 | wear top | color clothes
fashion | Clothing & Shoes / {who} / Clothing / Shirts | Dress Shirt | dress shirts | 19..70 | wear top | color clothes
fashion | Clothing & Shoes / {who} / Clothing / Sweaters | Hoodie | hoodies | 19..60 | wear top | color clothes
fashion | Clothing & Shoes / {who} / Clothing / Jackets | Jacket | jackets | 39..160 | wear top | color clothes
fashion | Clothing & Shoes / {who} / Clothing / Pants | Jeans | jeans | 19..80 | wear bottom | color waist
fashion | Clothing & Shoes / {who} / Clothing / Pants | Shorts | shorts | 12..45 | wear bottom | color clothes
fashion | Clothing & Shoes / {who} / Shoes / Sneakers | Sneakers | sneakers | 25..120 | feet | color shoes
fashion | Clothing & Shoes / {who} / Shoes / Boots | Boots | boots | 35..190 | feet | color shoes
fashion | Clothing & Shoes / {who} / Shoes / Sandals | Sandals | sandals | 12..70 | feet | color shoes
beauty | Beauty & Personal Care / Hair Care / Shampoo | Shampoo | shampoos | 6..28 | care | scent volume
beauty | Beauty & Personal Care / Skin Care / Face | Face Cream | face creams | 9..60 | care | scent volume
beauty | Beauty & Personal Care / Skin Care / Body | Body Lotion | body lotions | 6..30 | care | scent volume
beauty | Beauty & Personal Care / Makeup / Lips | Lipstick | lipsticks | 5..30 | care | color
beauty | Beauty & Personal Care / Tools / Brushes | Hair Brush | hair brushes | 6..30 | tool | color
electronics | Electronics / Headphones / Wireless | Headphones | headphones | 19..250 | device | color
electronics | Electronics / Audio / Speakers | Speaker | speakers | 15..300 | device | color
electronics | Electronics / Accessories / Cables | USB Cable | usb cables | 5..30 | cable | color length
electronics | Electronics / Accessories / Chargers | Wall Charger | wall chargers | 9..60 | cable | color
electronics | Cell Phones / Accessories / Cases | Phone Case | phone cases | 7..45 | case | color model
garden | Home & Kitchen / Furniture / Office | Desk | desks | 79..600 | furniture | color width
garden | Home & Kitchen / Furniture / Office | Office Chair | office chairs | 69..400 | furniture | color
garden | Home & Kitchen / Furniture / Living Room | Bookcase | bookcases | 49..300 | furniture | color width
garden | Home & Kitchen / Lighting / Lamps | Floor Lamp | floor lamps | 25..160 | lamp | color
garden | Home & Kitchen / Bedding / Blankets | Throw Blanket | throw blankets | 12..70 | fabric | color bed
garden | Home & Kitchen / Rugs / Area Rugs | Area Rug | area rugs | 29..280 | fabric | color rug
grocery | Grocery / Beverages / Tea | Green Tea | green teas | 5..25 | food | flavor pack
grocery | Grocery / Beverages / Coffee | Ground Coffee | ground coffees | 7..40 | food | flavor pack
grocery | Grocery / Snacks / Bars | Snack Bars | snack bars | 6..35 | food | flavor pack
grocery | Grocery / Snacks / Cookies | Cookies | cookies | 4..25 | food | flavor pack
"""

# What can be said of a product, by the names that stand in the table above.
_QUALITIES = """
wear: machine wash, hand wash, quick dry, stretch fabric, slim fit, relaxed fit, pure cotton, polyester blend
top: long sleeve, short sleeve, crew neck, button closure, hooded neck
bottom: high waist, elastic waist, straight leg, wide leg, side pockets
feet: rubber sole, memory foam, arch support, slip resistant, lace closure, wide toe, steel toe, leather lining
care: cruelty free, paraben free, alcohol free, dry skin, sensitive skin, tea tree, coconut oil, shea butter
tool: wooden handle, soft bristle, travel size, wet hair, heat resistant, easy clean
device: noise canceling, water resistant, long battery, fast charging, deep bass, voice control, carrying pouch
cable: fast charging, braided nylon, short circuit protection, data transfer, travel size, tangle free
case: shock proof, screen protection, wireless charging, card holder, clear back, slim design
furniture: solid wood, steel frame, easy assembly, space saving, living room, home office, storage drawer
lamp: dimmable light, remote control, energy saving, living room, adjustable height, easy assembly, linen shade
fabric: machine washable, super soft, fade resistant, living room, dining room, non slip, spot clean
food: gluten free, sugar free, non gmo, dairy free, low sodium, high protein, certified organic, individually wrapped
"""

# Groups of options: name on the page, then what can be chosen.
_GROUPS = """
color: color: black, white, red, navy, green, yellow, purple, pink, brown, beige, orange, teal, ivory, maroon
clothes: size: small, medium, large, x-large, xx-large, 3x-large
waist: size: 28w x 30l, 30w x 30l, 32w x 32l, 34w x 32l, 36w x 34l
shoes: size: 6, 7, 8, 9, 10, 11, 12
scent: scent: vanilla, lemon, lavender, rose, mint, unscented
volume: size: 2 fl oz, 4 fl oz, 8 fl oz, 16 fl oz
length: length: 3 ft, 6 ft, 10 ft
model: phone model: nova 5, nova 6, nova 7, orbit s, orbit x
width: width: 36 inch, 48 inch, 60 inch
bed: size: twin, queen, king
rug: size: 2 x 3 ft, 4 x 6 ft, 5 x 8 ft, 8 x 10 ft
flavor: flavor name: vanilla, lemon, mint, peach, salted caramel, cinnamon
pack: number of items: pack of 1, pack of 3, pack of 6, pack of 12
"""

_BRANDS = """
Alderby Bexley Corvane Dunmore Elswick Farrow Gatley Halden Iverson Jarrow Kelmore Lindqvist Marlow Norvik Ostley
Penrose Quillan Rowden Selby Tamsin Ulvend Varley Westoe Yardham Zellin
"""

EXCLUSIVE = frozenset({"sleeve", "fit", "leg", "toe", "skin", "wash"})
"""A product has one quality at most that ends with such a word."""
# Options and price limit are appended to these.
WISHES = (
    "Find me {qualities} {query}",
    "I need {qualities} {query}",
    "I am looking for {qualities} {query}",
    "Show me {qualities} {query}",
    "I want to buy {qualities} {query}",
)
BULLETS = (
    "Made for everyday use: {qualities}.",
    "Our customers like it for this: {qualities}.",
    "What you get: {qualities}.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of product."""

    category: str
    product_category: str
    title: str
    query: str
    cheapest: int
    dearest: int
    """Dollars."""
    qualities: tuple[str, ...]
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    """Option groups: name, and every value that some product has."""


def _table(text: str) -> dict[str, str]:
    rows = (line.partition(": ") for line in text.strip().splitlines())
    return {name: rest for name, _, rest in rows}


def _kinds() -> tuple[Kind, ...]:
    qualities = {name: tuple(rest.split(", ")) for name, rest in _table(_QUALITIES).items()}
    groups = {}
    for name, rest in _table(_GROUPS).items():
        shown, _, values = rest.partition(": ")
        groups[name] = (shown, tuple(values.split(", ")))
    kinds = []
    for line in _KINDS.strip().splitlines():
        category, levels, title, query, price, said, chosen = map(str.strip, line.split("|"))
        cheapest, dearest = map(int, price.split(".."))
        for who in ("Men", "Women") if "{who}" in levels else ("",):
            kinds.append(
                Kind(
                    category=category,
                    product_category=levels.format(who=who).replace(" / ", " \u203a "),
                    title=f"{who}'s {title}" if who else title,
                    query=f"{who.lower()}'s {query}" if who else query,
                    cheapest=cheapest,
                    dearest=dearest,
                    qualities=tuple(quality for name in said.split() for quality in qualities[name]),
                    groups=tuple(groups[name] for name in chosen.split()),
                )
            )
    return tuple(kinds)


KINDS = _kinds()
BRANDS = tuple(_BRANDS.split())
