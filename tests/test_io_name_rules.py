"""Patterns of module names: Python's own matcher is the oracle, where it comes to an end."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankscope.io.adapters.name_rules import NameRule

ATOMS = st.sampled_from(
    ["a", "b", "ab", ".", r"\.", r"\d", r"\w", "[ab]", "[^a]", "[0-9.]", r"[\w.]", "^", "$", r"\b"]
)
COUNTS = st.sampled_from(["", "*", "+", "?", "*?", "{2}", "{1,2}", "{,2}", "{1,}"])


def longer(rules):
    group = rules.map("({})".format) | rules.map("(?:{})".format)
    single = st.sampled_from(["a", ".", r"\.", r"\d", "[ab]"])
    return st.one_of(
        st.lists(rules, min_size=1, max_size=3).map("".join),
        st.lists(rules, min_size=2, max_size=3).map("|".join),
        group,
        st.builds("{}{}".format, single, COUNTS),
        st.builds("({}){}".format, ATOMS.filter(lambda a: a not in "^$" and a != r"\b"), COUNTS),
    )


@given(st.recursive(ATOMS, longer, max_leaves=8), st.text("ab0.", max_size=6))
def test_agrees_with_pythons_matcher(rule, module):
    expected = re.match(rf"(.*\.)?({rule})$", module) is not None
    assert NameRule(rule).matches(module) == expected


@pytest.mark.parametrize(
    "rule", ["(a|a)*b", "a?" * 40 + "a" * 40 + "b", ".*" * 60 + "b", "(.|a)*"]
)
def test_no_pattern_takes_ages(rule):
    assert NameRule(rule).matches("h." + "a" * 200) == (rule == "(.|a)*")


def test_names_of_real_configurations():
    rule = NameRule(r"model.layers.(1[0-9]|2[0-3]).self_attn.[qkv]_proj")
    assert rule.matches("base.model.layers.13.self_attn.k_proj")
    assert not rule.matches("model.layers.3.self_attn.k_proj")
    assert NameRule("v_proj").matches("h.0.v_proj")
    assert not NameRule("v_proj").matches("h.0.qv_proj")


REFUSED = [
    *("(", ")", "a)", "[", "*", "a**", "a{", "a{}", "a{3,2}", "a{999}", "a{9999999999}", "[z-a]"),
    *("[[a]", "[a--b]", "(?!a)", "(?i)a", r"(a)\1", "\\", r"\q", "(a+)+", "((a|b*)c){2}"),
    *("(" * 99, "a" * 513),
]


@pytest.mark.parametrize("rule", REFUSED)
def test_refused(rule):
    with pytest.raises(ValueError, match=r"\S"):
        NameRule(rule)
