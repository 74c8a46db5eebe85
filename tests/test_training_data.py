"""The generated languages: the same everywhere, correct, and without held-out questions."""

import hashlib
import re

import pytest
import torch

from rankscope.training.data import IGNORED, batch, example, is_held_out
from rankscope.training.languages import LONGEST
from rankscope.training.model import CONTEXT
from rankscope.training.vocabulary import PAD, decode

TASKS = ("mixture", "sql", "slots")


def examples(task, count, *, split="train", seed=0, difficulty=None):
    tail = (0,) if task == "mixture" else ()
    return [
        example(task, seed, split, index, *tail, difficulty=difficulty) for index in range(count)
    ]


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        ("mixture", "d8b4671436f3d5e36886041514ee188b5ba348d9099c2b68a04602b5346c928b"),
        ("slots", "0b08012da6ee81e452c48fea12523bb61258d466d144038b982126a02fd22982"),
        ("sql", "0f341f7592b7d2e014fd0f15e5158a21a9b720559f34d62d22ade8ba591295a4"),
    ],
)
def test_the_first_examples_are_the_same_everywhere(task, digest):
    text = "".join(map(str, examples(task, 200)))
    assert hashlib.sha256(text.encode()).hexdigest() == digest


@pytest.mark.parametrize("task", TASKS)
def test_training_never_holds_a_held_out_question(task):
    training = {text.key for seed in (0, 1) for text in examples(task, 1500, seed=seed)}
    held_out = {text.key for text in examples(task, 200, split="held-out")}

    assert training.isdisjoint(held_out)
    assert all(map(is_held_out, held_out))
    assert len(held_out) > 150


@pytest.mark.parametrize("task", TASKS)
def test_a_sixteenth_is_held_out(task):
    keys = {f"question {index}" for index in range(4000)}
    share = sum(map(is_held_out, keys)) / 4000
    assert share == pytest.approx(1 / 16, abs=5 * (15 / 256 / 4000) ** 0.5)


def test_sql_answers_its_question():
    for text in examples("sql", 500):
        table, columns, asked = re.fullmatch(
            r"(\w+)\(([\w,]+)\)\n(.+)\?\n", text.question
        ).groups()
        selected, source, conditions = re.fullmatch(
            r"SELECT (\S+) FROM (\w+) WHERE (.+)\n", text.answer
        ).groups()

        assert source == table
        column = re.fullmatch(r"(?:[A-Z]+\()?(\*|\w+)\)?", selected).group(1)
        assert column in {"*", *columns.split(",")}
        assert asked.startswith(f"how many {table}") if column == "*" else column in asked
        for condition in conditions.split(" AND "):
            name, operator, value = re.fullmatch(r"(\w+) ([<>=]) (.+)", condition).groups()
            assert name in columns.split(",")
            words = {"<": "under|below", ">": "over|above", "=": "of"}[operator]
            said = rf"{name} (?:{words}) {value}" if value.isdigit() else f"{name} {value[1:-1]}"
            assert re.search(said, asked)


def test_sql_fits_the_context_and_uses_every_form():
    texts = examples("sql", 500)

    assert max(len(str(text)) for text in texts) <= LONGEST == CONTEXT + 1
    answers = "".join(text.answer for text in texts)
    for form in ("MAX(", "MIN(", "AVG(", "SUM(", "COUNT(*)", " AND ", " > ", " < ", " = ", "'"):
        assert form in answers


def test_what_the_mixture_says_is_true():
    found = {"sum": 0, "copy": 0, "count": 0, "loud": 0, "member": 0, "extreme": 0}
    for text in map(str, examples("mixture", 800)):
        if m := re.fullmatch(r"(\d+)\+(\d+)=(\d+)\n", text):
            found["sum"] += 1
            assert int(m[1]) + int(m[2]) == int(m[3])
        elif m := re.fullmatch(r"copy (\S+)((?: \S+)+)\n", text):
            found["copy"] += 1
            assert set(m[2].split()) == {m[1]}
        elif m := re.fullmatch(r"count by (\d+) from (\d+): ([\d ]+)\n", text):
            found["count"] += 1
            numbers = [int(number) for number in m[3].split()]
            assert numbers == [int(m[2]) + int(m[1]) * i for i in range(len(numbers))]
        elif m := re.fullmatch(r"loud ([a-z ]+): ([A-Z ]+)\n", text):
            found["loud"] += 1
            assert m[1].upper() == m[2]
        elif m := re.fullmatch(r"\w+\(([\w,]+)\) (\w+) = '(\w+)'\n", text):
            found["member"] += 1
            assert m[1].split(",")[("first", "second", "third").index(m[2])] == m[3]
        elif m := re.fullmatch(r"\w+: \w+ (\d+), \w+ (\d+)\. the (\w+) is (\d+)\.\n", text):
            found["extreme"] += 1
            extreme = min if m[3] in ("lowest", "smallest", "least") else max
            assert extreme(int(m[1]), int(m[2])) == int(m[4])
    assert min(found.values()) > 40


@pytest.mark.parametrize("task", ["sql", "slots"])
def test_the_loss_counts_the_answer_and_its_terminator_alone(task):
    inputs, targets = batch(task, 0, "train", 5, 8)

    assert inputs.shape == targets.shape == (8, CONTEXT)
    assert inputs.dtype == targets.dtype == torch.long
    for row, (given, wanted) in enumerate(zip(inputs, targets, strict=True)):
        text = example(task, 0, "train", 5 + row)
        counted = wanted != IGNORED
        assert decode(wanted[counted].numpy()) == text.answer
        assert text.answer.endswith("\n")
        assert decode(given.numpy()) == str(text)[:-1]
        # Each counted position predicts the character that follows what it has read.
        assert counted.nonzero()[0].item() == len(text.question) - 1
        assert given[len(str(text)) - 1 :].eq(PAD).all()


# --- slots ------------------------------------------------------------------------------------

DIFFICULTY = pytest.mark.parametrize("difficulty", [1, 2, 3])


def slots_of(text) -> dict[str, str]:
    return dict(part.split("=") for part in text.question.strip().split(";"))


@DIFFICULTY
def test_slots_fit_the_context_and_grow_with_difficulty(difficulty):
    texts = examples("slots", 400, difficulty=difficulty)

    assert max(len(str(text)) for text in texts) <= LONGEST
    assert {len(slots_of(text)) for text in texts} == {1: {3}, 2: {4}, 3: {6}}[difficulty]
    kinds = {kind for text in texts for kind in slots_of(text)}
    assert len(kinds) == {1: 4, 2: 6, 3: 7}[difficulty]


@DIFFICULTY
def test_a_sentence_says_every_slot_and_a_reader_finds_them_again(difficulty):
    """The reader is a regular expression of its own: no slot is lost, none is made up."""
    prices = {"cheap": "low", "affordable": "mid", "expensive": "high", "exclusive": "top"}
    stars = {"one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
    form = re.compile(
        r"(?P<name>[A-Za-z][a-z]+) is (?P<article>an?)"
        rf"(?: (?P<price>{'|'.join(prices)}))?(?: (?P<rating>{'|'.join(stars)}) star)?"
        r"(?: (?P<food>[a-z]+))? (?P<noun>place|grill|kitchen|shop|pub|bar)"
        r"(?: (?:in|by|at) the (?P<area>[a-z]+))?(?: near (?P<near>[A-Za-z][a-z]+))?"
        r"(?:, (?P<joint>and|but) (?P<kids>kids like it|not for kids))?[.]\n"
    )
    for text in examples("slots", 400, difficulty=difficulty):
        said = form.fullmatch(text.answer).groupdict()
        first = text.answer.split()[3]
        assert said.pop("article") == ("an" if first[0] in "aeiou" and first != "one" else "a")
        assert all(
            said[kind].istitle() == (difficulty == 3) for kind in ("name", "near") if said[kind]
        )
        said["name"] = said["name"].lower()
        said["near"] = said["near"] and said["near"].lower()
        said["price"] = said["price"] and prices[said["price"]]
        said["rating"] = said["rating"] and stars[said["rating"]]
        noun, joint = said.pop("noun"), said.pop("joint")
        assert said["food"] or noun == "place"
        if said["kids"]:
            said["kids"] = "yes" if said["kids"] == "kids like it" else "no"
            good = int(said["rating"] or 3) >= 3
            assert joint == ("and" if (said["kids"] == "yes") == good else "but")
        assert {kind: value for kind, value in said.items() if value} == slots_of(text)


def test_the_same_slots_in_another_order_are_the_same_question():
    orders = {}
    for text in examples("slots", 6000, difficulty=1):
        orders.setdefault(text.key, set()).add((text.question, text.answer))

    several = [texts for texts in orders.values() if len(texts) > 1]
    assert len(several) > 500
    assert all(len({answer for _, answer in texts}) == 1 for texts in several)


# --- shuffled labels --------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["sql", "slots"])
def test_shuffled_labels_are_well_formed_answers_of_other_questions(task):
    inputs, targets = batch(task, 0, "train", 0, 60, labels="shuffled")
    true, _ = batch(task, 0, "train", 0, 60)

    beginnings = {"sql": "SELECT ", "slots": ""}
    found = []
    for row in range(60):
        text = example(task, 0, "train", row)
        answer = decode(targets[row][targets[row] != IGNORED].numpy())
        assert answer != text.answer
        assert answer.startswith(beginnings[task])
        assert answer.endswith("\n")
        assert decode(inputs[row].numpy()) == text.question + answer[:-1]
        length = len(text.question)
        assert torch.equal(inputs[row, :length], true[row, :length])
        found.append(answer)
    assert len(set(found)) > 40


def test_a_question_asked_again_has_the_same_wrong_answer():
    answers = {}
    for first in range(0, 3000, 500):
        inputs, targets = batch("slots", 0, "train", first, 500, difficulty=1, labels="shuffled")
        for row, (given, wanted) in enumerate(zip(inputs, targets, strict=True)):
            key = example("slots", 0, "train", first + row, difficulty=1).key
            answer = decode(wanted[wanted != IGNORED].numpy())
            answers.setdefault(key, []).append(answer)
            assert decode(given.numpy()).endswith(answer[:-1])
    repeated = [given for given in answers.values() if len(given) > 1]
    assert len(repeated) > 300
    assert all(len(set(given)) == 1 for given in repeated)


def test_the_mixture_has_a_use_for_every_character():
    """An adapter on q and v alone cannot teach a character that the base has never met."""
    assert set("".join(map(str, examples("mixture", 2000)))) == {"\n", *map(chr, range(32, 127))}


def test_rows_of_the_mixture_are_full_and_every_position_counts():
    inputs, targets = batch("mixture", 0, "train", 0, 4)

    assert (inputs != PAD).all()
    assert (targets != PAD).all()
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_depends_on_its_position_alone(task):
    whole = batch(task, 3, "train", 0, 6)
    parts = [batch(task, 3, "train", first, 2) for first in (0, 2, 4)]

    for side in (0, 1):
        assert torch.equal(whole[side], torch.cat([part[side] for part in parts]))
    assert not torch.equal(whole[0], batch(task, 4, "train", 0, 6)[0])
