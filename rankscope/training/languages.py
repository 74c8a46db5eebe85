"""The small languages that the models are trained on, one text at a time."""

from __future__ import annotations

from dataclasses import dataclass

from rankscope.training.draws import Chance

__all__ = ["LONGEST", "Text", "mixture_text", "sql_text"]

LONGEST = 129  # characters: 128 to read and 128, one further on, to predict


@dataclass(frozen=True, slots=True)
class Text:
    """One example: what is given, and what is to be written after it.

    The loss counts on `answer` alone, which ends with its terminator, a newline. `question` is
    empty where everything counts. `key` tells examples apart: those that share it ask the same,
    and are held out together.
    """

    question: str
    answer: str
    key: str

    def __str__(self) -> str:
        return self.question + self.answer


# --- the mixture: English, arithmetic, copying, counting -----------------------------------

_NAMES = ("anna", "ben", "clara", "david", "emma", "felix", "grace", "henry", "iris", "jack")
_NOUNS = ("car", "boat", "house", "bird", "horse", "tree", "book", "lamp", "river", "stone")
_COLOURS = ("red", "blue", "green", "black", "white", "brown", "grey", "yellow")
_PLACES = ("paris", "oslo", "rome", "cairo", "lima", "delhi", "tokyo", "boston")
_MEASURES = ("price", "age", "height", "weight", "speed", "length", "score", "year")
_SMALLER = ("lowest", "smallest", "least")
_LARGER = ("highest", "largest", "greatest")
_PRINTABLE = "".join(map(chr, range(33, 127)))


def mixture_text(chance: Chance) -> Text:
    """Return one line of the pre-training mixture; all of it counts, as `answer`.

    The mixture holds what adaptation to SQL builds upon, as the base of a real adapter does, and
    leaves the task itself out: queries in lower case, without questions, and capitals elsewhere.
    Copying shows every printable character, so that the model has a use for all of them.
    """
    line = chance.of(_LINES)(chance)
    return Text("", line + "\n", line)


def _fact(chance: Chance) -> str:
    name, noun, measure = chance.of(_NAMES), chance.of(_NOUNS), chance.of(_MEASURES)
    colour, place, number = chance.of(_COLOURS), chance.of(_PLACES), chance.between(1, 999)
    return chance.of(
        (
            f"{name} has {number} {noun}s in {place}.",
            f"the {measure} of the {colour} {noun} is {number}.",
            f"in {place}, {name} saw a {colour} {noun} with {measure} {number}.",
            f"how many {noun}s does {name} have if {name} has {number}? {number}.",
        )
    )


def _comparison(chance: Chance) -> str:
    first, second = chance.some(_NAMES, 2)
    measure, one, other = chance.of(_MEASURES), chance.between(1, 99), chance.between(1, 99)
    words, chosen = chance.of(((_SMALLER, min(one, other)), (_LARGER, max(one, other))))
    return f"{measure}: {first} {one}, {second} {other}. the {chance.of(words)} is {chosen}."


def _dialogue(chance: Chance) -> str:
    first, second = chance.some(_NOUNS, 2)
    colours = chance.some(_COLOURS, 2)
    asked, colour = chance.of(((first, colours[0]), (second, colours[1])))
    given = f"the {first} is {colours[0]} and the {second} is {colours[1]}."
    return f"{given} what colour is the {asked}? {colour}."


def _sum(chance: Chance) -> str:
    a, b = chance.between(0, 99), chance.between(0, 99)
    if chance.between(1, 3) == 1:
        return f"{a} {'<' if a < b else '>' if a > b else '='} {b}"
    return f"{a}+{b}={a + b}"


def _copy(chance: Chance) -> str:
    characters = chance.of((_PRINTABLE, "abcdefghijklmnopqrstuvwxyz", "0123456789"))
    word = "".join(chance.of(characters) for _ in range(chance.between(3, 16)))
    return " ".join(["copy", *[word] * chance.between(2, 4)])


def _loud(chance: Chance) -> str:
    words = [chance.of(chance.of((_NOUNS, _COLOURS, _MEASURES, _NAMES))) for _ in range(3)]
    said = " ".join(words[: chance.between(1, 3)])
    return f"loud {said}: {said.upper()}"


def _count(chance: Chance) -> str:
    start, length, step = chance.between(0, 90), chance.between(3, 8), chance.between(1, 5)
    numbers = range(start, start + length * step, step)
    return f"count by {step} from {start}: {' '.join(map(str, numbers))}"


def _member(chance: Chance) -> str:
    members = chance.some(chance.of((_NAMES, _NOUNS, _COLOURS)), 3)
    place = chance.between(0, 2)
    words = ("first", "second", "third")
    return f"{chance.of(_PLACES)}({','.join(members)}) {words[place]} = '{members[place]}'"


def _query(chance: Chance) -> str:
    return _any_sql_text(chance).answer.rstrip().lower()


# Copying comes thrice: a small model learns it last, after some 400 steps, and filling a query
# with the words of its question builds upon it.
_LINES = (
    *(_fact, _comparison, _dialogue, _sum, _count, _loud, _member, _query),
    *(_copy, _copy, _copy),
)


# --- questions about a table, answered in SQL ----------------------------------------------

_TABLES = ("people", "cars", "books", "games", "songs", "shops", "teams", "films", "ships")
_WORD_COLUMNS: dict[str, tuple[str, ...]] = {
    "name": _NAMES,
    "owner": _NAMES,
    "color": _COLOURS,
    "city": _PLACES,
    "home": _PLACES,
    "kind": ("old", "new", "fast", "slow", "rare", "cheap"),
}
_NUMBER_COLUMNS = ("price", "age", "year", "score", "size", "speed", "rank", "cost")
_AGGREGATES = (
    ("highest", "MAX"),
    ("largest", "MAX"),
    ("lowest", "MIN"),
    ("smallest", "MIN"),
    ("average", "AVG"),
    ("mean", "AVG"),
    ("total", "SUM"),
    ("sum of", "SUM"),
)
_COMPARISONS = (("over", ">"), ("above", ">"), ("under", "<"), ("below", "<"), ("of", "="))


def sql_text(chance: Chance) -> Text:
    """Return a question about a table with its SQL; at most `LONGEST` characters together.

    The question shows the table's name and columns. One column, an aggregate of a column, or
    the number of rows is asked for, under one condition or two.

    Examples
    --------
    >>> print(sql_text(Chance("example", 1)), end="")
    shops(age,name,owner)
    total age for name ben and owner iris?
    SELECT SUM(age) FROM shops WHERE name = 'ben' AND owner = 'iris'
    """
    while True:
        text = _any_sql_text(chance)
        if len(str(text)) <= LONGEST:
            return text


def _any_sql_text(chance: Chance) -> Text:
    table = chance.of(_TABLES)
    words = chance.some(tuple(_WORD_COLUMNS), 2)
    numbers = chance.some(_NUMBER_COLUMNS, 2)
    columns = chance.some(words + numbers, 3)
    column, *others = columns
    asked, selected = _selection(chance, table, column)
    limits = chance.some(others, chance.between(1, 2))
    conditions = [_condition(chance, limit) for limit in limits]
    said = " and ".join(words for words, _ in conditions)
    required = " AND ".join(sql for _, sql in conditions)
    schema = ",".join(chance.some(columns, 3))
    question = f"{asked} {chance.of(('with', 'where', 'for'))} {said}?"
    sql = f"SELECT {selected} FROM {table} WHERE {required}"
    # The key leaves the table out: its columns' order makes no other question.
    return Text(f"{table}({schema})\n{question}\n", f"{sql}\n", question)


def _selection(chance: Chance, table: str, column: str) -> tuple[str, str]:
    if column in _NUMBER_COLUMNS and chance.between(1, 4) > 1:
        word, function = chance.of(_AGGREGATES)
        return f"{word} {column}", f"{function}({column})"
    if chance.between(1, 3) == 1:
        return f"how many {table}", "COUNT(*)"
    return f"{chance.of(('what', 'which'))} {column}", column


def _condition(chance: Chance, column: str) -> tuple[str, str]:
    if column in _NUMBER_COLUMNS:
        word, operator = chance.of(_COMPARISONS)
        number = 10 * chance.between(1, 9)
        return f"{column} {word} {number}", f"{column} {operator} {number}"
    value = chance.of(_WORD_COLUMNS[column])
    return f"{column} {value}", f"{column} = '{value}'"
