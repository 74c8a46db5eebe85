"""Data to text: the attributes of a place to eat, and the one sentence that says them."""

from __future__ import annotations

from collections.abc import Mapping

from rankscope.training.draws import Chance
from rankscope.training.languages import LONGEST, Text

__all__ = ["DIFFICULTIES", "USUAL_DIFFICULTY", "sentence", "slots_text"]

_NAMES = (
    *("anna", "ben", "clara", "david", "emma", "felix", "grace", "henry", "iris", "jack", "kate"),
    *("leo", "mona", "nina", "oscar", "paul", "quinn", "rosa", "sam", "tom", "vera", "zoe"),
)
# What is served, and what a place that serves it is called.
_FOODS = {
    "thai": "place",
    "indian": "place",
    "greek": "grill",
    "turkish": "grill",
    "italian": "kitchen",
    "french": "kitchen",
    "coffee": "shop",
    "ice": "shop",
    "beer": "pub",
    "wine": "bar",
}
_AREAS = {
    "city": "in the city",
    "suburb": "in the suburb",
    "river": "by the river",
    "lake": "by the lake",
    "sea": "by the sea",
    "park": "at the park",
    "market": "at the market",
    "airport": "at the airport",
}
_PRICES = {"low": "cheap", "mid": "affordable", "high": "expensive", "top": "exclusive"}
_RATINGS = {"1": "one", "2": "two", "3": "three", "4": "four", "5": "five"}
_GOOD = 3  # stars from which a place is good
_KIDS = ("yes", "no")

_VALUES: dict[str, tuple[str, ...]] = {
    "food": tuple(_FOODS),
    "area": tuple(_AREAS),
    "price": tuple(_PRICES),
    "rating": tuple(_RATINGS),
    "near": _NAMES,
    "kids": _KIDS,
}
# By difficulty: how many slots beside the name, and from which.
DIFFICULTIES = {
    1: (2, ("food", "area", "price")),
    2: (3, ("food", "area", "price", "rating", "near")),
    3: (5, tuple(_VALUES)),
}
USUAL_DIFFICULTY = 2


def slots_text(chance: Chance, difficulty: int) -> Text:
    """Return slots in random order with their sentence; at most `LONGEST` characters together.

    Difficulty is the number of slots, and with it of the rules that `sentence` needs: 1 names
    two of food, area and price; 2 three, of rating and a neighbour as well; 3 five, of whether
    children are welcome as well, and writes names with a capital. Two texts with the same slots
    in another order share their key.

    Examples
    --------
    >>> print(slots_text(Chance("example", 1), 2), end="")
    name=nina;price=high;food=wine;area=suburb
    nina is an expensive wine bar in the suburb.
    """
    while True:
        text = _any_slots_text(chance, difficulty)
        if len(str(text)) <= LONGEST:
            return text


def _any_slots_text(chance: Chance, difficulty: int) -> Text:
    count, kinds = DIFFICULTIES[difficulty]
    slots = {"name": chance.of(_NAMES)}
    for kind in chance.some(kinds, count):
        slots[kind] = chance.of([value for value in _VALUES[kind] if value != slots["name"]])
    given = [f"{kind}={value}" for kind, value in slots.items()]
    question = ";".join(chance.some(given, len(given)))
    answer = sentence(slots, capitals=difficulty == max(DIFFICULTIES))
    return Text(f"{question}\n", f"{answer}\n", ";".join(sorted(given)))


def sentence(slots: Mapping[str, str], *, capitals: bool) -> str:
    """Return the one sentence that says `slots`, whatever their order.

    The order is that of English: article, price, stars, food, noun, area, neighbour, children.
    The article agrees with the word after it, the noun with the food, the preposition with the
    area; "but" joins what speaks against each other, a good place and no children, or a bad one
    that they like.

    Parameters
    ----------
    slots : mapping
        ``name`` and any of ``food``, ``area``, ``price``, ``rating``, ``near`` and ``kids``.
    capitals : bool
        Whether names are written with one.

    Examples
    --------
    >>> sentence({"food": "indian", "name": "emma", "area": "river"}, capitals=False)
    'emma is an indian place by the river.'
    >>> slots = {"name": "leo", "price": "low", "rating": "5", "near": "ben", "kids": "no"}
    >>> sentence(slots, capitals=True)
    'Leo is a cheap five star place near Ben, but not for kids.'
    """
    noun = _noun(slots)
    name, near = (
        word.capitalize() if capitals else word for word in (slots["name"], slots.get("near", ""))
    )
    where = [_AREAS[slots["area"]]] if "area" in slots else []
    if near:
        where.append(f"near {near}")
    said = " ".join([name, "is", _article(noun), noun, *where])
    return f"{said}{_children(slots)}."


def _noun(slots: Mapping[str, str]) -> str:
    words = [_PRICES[slots["price"]]] if "price" in slots else []
    if "rating" in slots:
        words.append(f"{_RATINGS[slots['rating']]} star")
    food = slots.get("food")
    return " ".join([*words, *([food, _FOODS[food]] if food else ["place"])])


def _article(noun: str) -> str:
    # "one" is written with a vowel and spoken without.
    return "an" if noun[0] in "aeiou" and not noun.startswith("one") else "a"


def _children(slots: Mapping[str, str]) -> str:
    if "kids" not in slots:
        return ""
    welcome = slots["kids"] == "yes"
    good = int(slots.get("rating", _GOOD)) >= _GOOD
    return (
        f", {'and' if welcome == good else 'but'} {'kids like it' if welcome else 'not for kids'}"
    )
