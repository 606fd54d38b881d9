"""The filter language: what a filter means, what is refused, and that text says the same."""

import json
from collections.abc import Iterator, Mapping
from datetime import date
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e2rank.where import (
    And,
    Condition,
    Exists,
    Not,
    OneOf,
    Or,
    Ordered,
    Value,
    holds,
    parse_where,
    size_of,
    where_from_text,
)
from e2rank.where.conditions import value_of

NUMBERS = [0, -0.0, 1, 1.0, 0.5, -1, 2020, 5e-324, -5e-324, 0.1, 1 / 3, 255, 256, -256]
NUMBERS += [2**53, 2.0**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2.0**63, 2**64, 2.0**64]
NUMBERS += [-(2**63), -(2**63) - 1, -(2.0**63), -(2**64), 1e19, 10**19, 10**20, 1e20, -1e20]
NUMBERS += [1.7e308, int(1.7e308), int(1.7e308) + 1, -1.7e308, 10**400, -(10**400), 10**400 + 1]
TEXTS = ["", "a", "A", "ab", "a\0", "a\0b", "\0", "1", "true", "null", "2020", "é", "e\u0301"]
TEXTS += ["\x7f", "\u07ff", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0001f600", "\U0010ffff"]
TEXTS += ["'; DROP TABLE fields; --", '"', "%", "_", "a%", "?", ":a", "\\", "\n"]
NAMES = ["a", "b", "a.b", "a.", ".", "", "ü", "x y", "'; DROP TABLE fields; --", '"', "%", "x\0y"]

# A busy machine may be slow to draw; what is drawn is small.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
names = st.sampled_from(NAMES)
singles = st.one_of(
    st.sampled_from([None, True, False, *NUMBERS, *TEXTS]),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=3),
)
ordered = st.one_of(
    st.sampled_from(NUMBERS + TEXTS), st.floats(allow_nan=False, allow_infinity=False)
)
documents = st.dictionaries(
    names,
    st.recursive(
        singles,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=2),
        max_leaves=4,
    ),
    max_size=4,
)
tests = st.one_of(
    singles,
    st.fixed_dictionaries(
        {},
        optional={
            **{sign: ordered for sign in ("<", "<=", ">", ">=")},
            **{sign: singles for sign in ("=", "!=")},
            "in": st.lists(singles, max_size=4),
            "exists": st.booleans(),
        },
    ).filter(bool),
)
wheres = st.recursive(
    st.dictionaries(names, tests, max_size=2),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"and": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"or": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"not": inner}, optional={"a": tests}),
    ),
    max_leaves=4,
)


def defined(where: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """The language's definition, in loops over the filter as it is written."""
    for key, tests in where.items():
        if key == "and":
            met = all([defined(part, metadata) for part in tests])
        elif key == "or":
            met = any([defined(part, metadata) for part in tests])
        elif key == "not":
            met = not defined(tests, metadata)
        else:
            found = [value for name, value in walk("", metadata) if name == f".{key}"]
            tests = tests if isinstance(tests, dict) else {"=": tests}
            met = all([passes(found, sign, value) for sign, value in tests.items()])
        if not met:
            return False
    return True


def walk(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every dotted name, with what it holds; an empty list is something too."""
    if isinstance(value, dict):
        yield name, value
        for key, inner in value.items():
            yield from walk(f"{name}.{key}", inner)
    elif isinstance(value, list) and value:
        for element in value:
            yield from walk(name, element)
    else:
        yield name, value


def passes(found: list[Any], sign: str, value: Any) -> bool:
    if sign == "exists":
        return (len(found) > 0) == value
    if sign == "!=":
        return not passes(found, "=", value)
    if sign == "in":
        return any([passes(found, "=", each) for each in value])
    for each in found:
        one, other = comparable(each), comparable(value)
        if one[0] != other[0] or one[0] == "container":
            continue
        order = (one[1] > other[1]) - (one[1] < other[1])
        if order in {"=": [0], "<": [-1], "<=": [-1, 0], ">": [1], ">=": [1, 0]}[sign]:
            return True
    return False


def comparable(value: Any) -> tuple[str, Any]:
    """A kind, and what is compared within it."""
    if isinstance(value, str):
        return "string", [ord(char) for char in value]
    if isinstance(value, bool) or value is None:
        return type(value).__name__, [value is True]
    if isinstance(value, int | float):
        return "number", Fraction(value)
    return "container", None


@patient
@given(documents, wheres)
def test_a_condition_holds_where_the_definition_says(
    metadata: dict[str, Any], where: dict[str, Any]
) -> None:
    assert holds(parse_where(where), metadata) == defined(where, metadata)


RECORD = {
    "year": 2021,
    "lang": "en",
    "tags": ["a", "b", ["c"]],
    "draft": False,
    "doi": None,
    "author": {"name": "Kim", "age": 40},
    "parts": [{"n": 1}, {"n": 9}],
    "key.dot": 1,
    "none": [],
}
MEANINGS = [
    ({}, True),
    ({"year": 2021, "lang": "en"}, True),
    ({"year": 2021, "lang": "de"}, False),
    ({"year": 2021.0}, True),
    ({"year": "2021"}, False),
    ({"year": {">=": "2020"}}, False),
    ({"lang": {">=": 2020}}, False),
    ({"lang": {">": "dz", "<": "eo"}}, True),
    ({"lang": "EN"}, False),
    ({"draft": False}, True),
    ({"draft": 0}, False),
    ({"draft": None}, False),
    ({"doi": None}, True),
    ({"missing": None}, False),
    ({"missing": {"!=": 1}}, True),
    ({"year": {"!=": 2021}}, False),
    ({"year": {"!=": True}}, True),
    ({"doi": {"exists": True}}, True),
    ({"none": {"exists": True}}, True),
    ({"author": {"exists": True}}, True),
    ({"missing": {"exists": True}}, False),
    ({"missing": {"exists": False}}, True),
    ({"tags": "a"}, True),
    ({"tags": "c"}, True),
    ({"tags": {"!=": "a"}}, False),
    ({"tags": {"in": ["x", "b"]}}, True),
    ({"tags": {"in": []}}, False),
    ({"author.name": "Kim"}, True),
    ({"author": None}, False),
    ({"key.dot": 1}, True),
    ({"parts.n": 9}, True),
    ({"parts.n": {">": 1, "<": 9}}, True),
    ({"and": []}, True),
    ({"or": []}, False),
    ({"or": [{"year": 1}, {"lang": "en"}]}, True),
    ({"and": [{"year": 2021}, {"lang": "de"}]}, False),
    ({"not": {"year": 1}, "lang": "en"}, True),
    ({"not": {}}, False),
]


@pytest.mark.parametrize(("where", "expected"), MEANINGS, ids=str)
def test_a_filter_means_what_the_documentation_says(where: dict[str, Any], expected: bool) -> None:
    assert holds(parse_where(where), RECORD) is expected


def test_conditions_can_be_keys_that_tell_true_from_one() -> None:
    wheres = [{"a": 1}, {"a": True}, {"a": "1"}, {"a": None}, {"a": {"in": [1, True]}}, {}]
    kept = {parse_where(where): where for where in wheres}
    assert list(kept.values()) == wheres
    assert parse_where({"a": 1}) == parse_where({"a": {"=": 1.0}})
    assert parse_where({"a": {"in": [1, 2]}}) == parse_where({"a": {"in": (2, 1.0, 1)}})


def test_any_mapping_and_any_depth_of_metadata_is_read() -> None:
    deep: Any = "found"
    for _ in range(5000):
        deep = [deep]
    proxy = MappingProxyType({"a": MappingProxyType({"b": deep})})
    assert holds(parse_where(MappingProxyType({"a.b": MappingProxyType({"=": "found"})})), proxy)


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"a": np.int64(7)}, {"a": 7}),
        ({"a": {">": np.float32(0.5)}}, {"a": {">": 0.5}}),
        ({"a": np.bool_(True)}, {"a": True}),
        ({"a": {"in": {1, 2}}}, {"a": {"in": [1, 2]}}),
        ({"a": {"in": range(3)}}, {"a": {"in": [0, 1, 2]}}),
    ],
    ids=str,
)
def test_numbers_of_numpy_and_sets_mean_what_pythons_do(given: Any, same: Any) -> None:
    assert parse_where(given) == parse_where(same)


def test_a_date_is_refused_with_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"is a date; expected .* \(of a date, its isoformat"):
        parse_where({"a": {">=": date(2020, 1, 2)}})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x"], ids=str)
def test_metadata_that_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"JSON can hold|expected a string, a number"):
        holds(parse_where({"a": 1}), {"a": [value]})


def nested(depth: int) -> dict[str, Any]:
    where: dict[str, Any] = {"a": 1}
    for _ in range(depth):
        where = {"not": where}
    return where


MANY = list(range(10_001))
REFUSED = [
    ([], "where is a list; expected a mapping such as {'year': {'>=': 2020}}"),
    (None, "where is null; expected a mapping such as {'year': {'>=': 2020}}"),
    ({1: 2}, "where has a key that is an int; names of fields are strings"),
    ({"a": {}}, "where['a'] is an empty mapping; expected a value or an operator"),
    ({"a": [1]}, "where['a'] is a list; to match any of several values write {'in': [...]}"),
    (
        {"author": {"name": "Kim"}},
        "where['author'] has the unknown operator 'name'; expected one of = != < <= > >= in exists "
        "(a field inside an object is named with a dot: 'author.name')",
    ),
    (
        {"a": {1: 1}},
        "where['a'] has the unknown operator 1; expected one of = != < <= > >= in exists "
        "(a field inside an object is named with a dot: 'author.name')",
    ),
    ({"a": {"in": "xy"}}, "where['a']['in'] is a str; expected a list of values"),
    ({"a": {"in": MANY}}, "where['a']['in'] lists 10,001 values; at most 10,000 are taken"),
    (
        {"a": {"in": [1, [2]]}},
        "where['a']['in'][1] is a list; expected a string, a number, a boolean or null",
    ),
    ({"a": {"exists": 1}}, "where['a']['exists'] is an int; expected true or false"),
    ({"a": {">": True}}, "where['a']['>'] is a bool; only numbers and strings have an order"),
    ({"a": {"<=": None}}, "where['a']['<='] is null; only numbers and strings have an order"),
    (
        {"a": {"<=": {}}},
        "where['a']['<='] is a dict; expected a string, a number, a boolean or null",
    ),
    ({"a": float("nan")}, "where['a']['='] is nan, which is no number that JSON can hold"),
    ({"a": {"<": float("inf")}}, "where['a']['<'] is inf, which is no number that JSON can hold"),
    ({"a": b"x"}, "where['a']['='] is a bytes; expected a string, a number, a boolean or null"),
    (
        {"a": "\ud800"},
        "where['a']['='] has half a surrogate pair, which no document can hold",
    ),
    ({"\ud800": 1}, "where['\\ud800'] has half a surrogate pair, which no document can hold"),
    ({"and": {"a": 1}}, "where['and'] is a dict; expected a list of filters"),
    ({"or": "x"}, "where['or'] is a str; expected a list of filters"),
    (
        {"or": [{}, {"not": 1}]},
        "where['or'][1]['not'] is an int; expected a mapping such as {'year': {'>=': 2020}}",
    ),
    (
        nested(33),
        "where" + "['not']" * 33 + " is nested too deep; and, or, not may nest 32 deep",
    ),
]


@pytest.mark.parametrize(("where", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_no_filter_is_refused_by_place(where: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared below
        parse_where(where)
    assert str(error.value) == message


def test_the_limits_themselves_are_allowed() -> None:
    assert holds(parse_where(nested(32)), {"a": 1})
    assert where_from_text("not " * 32 + "a = 1") == nested(32)
    assert where_from_text(" and ".join(["(a = 1)"] * 99)) == {"and": [{"a": 1}] * 99}
    assert holds(parse_where({"a": {"in": MANY[:10_000]}}), {"a": 9_999})
    assert holds(parse_where({"or": [{"a": number} for number in range(1000)]}), {"a": 999})


SHORT = "is a test too many; at most 1,000 are taken; to match any of several"


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ({"or": [{f"f{n}": n} for n in range(1001)]}, "where['or'][1000]['f1000']['=']"),
        ({"and": [{"a": {">": 1, "<": 9}}] * 501}, "where['and'][500]['a']['>']"),
        ({"a": 1, "not": {"or": [{}] * 1000}}, "where['not']['or'][999]"),
        ({"or": [{"and": []}] * 10**6}, "where['or'][1000]['and']"),
        ({str(n): {"exists": True} for n in range(1001)}, "where['1000']['exists']"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_filter_of_more_tests_than_are_taken_is_refused_at_the_first_of_them(
    where: dict[str, Any], place: str
) -> None:
    with pytest.raises(ValueError, match="test too many") as error:
        parse_where(where)
    assert str(error.value).startswith(f"{place} {SHORT} values of a field write {{'in': [...]}}")


@pytest.mark.parametrize("test", ["a = 1", "not a in [1, 2]", "exists a", "(a < 1)"])
def test_a_line_of_more_tests_than_are_taken_is_refused_at_the_first_of_them(test: str) -> None:
    where_from_text(" or ".join([test] * 1000))
    with pytest.raises(ValueError, match=r"a test too many; at most 1,000 .* field in \[") as error:
        where_from_text(" or ".join([test] * 2000))
    assert str(error.value).startswith(f"filter, character {1000 * (len(test) + 4) + 1}: ")


def test_the_size_of_a_filter_is_its_tests_and_what_they_list() -> None:
    where = {"or": [{"a": {">": 1, "in": [1, 2, 3]}}, {"not": {"b": {"exists": True}}}, {}]}
    assert size_of(parse_where(where)) == 1 + 4 + 1


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("year >= 2020", {"year": {">=": 2020}}),
        ("year>=-2.5e1", {"year": {">=": -25.0}}),
        ("lang = 'en'", {"lang": "en"}),
        ('lang != "en"', {"lang": {"!=": "en"}}),
        ("author.first-name_2 = null", {"author.first-name_2": None}),
        ("'a \"b\"' = true", {'a "b"': True}),
        (r"a = 'it\'s \u00e9\n'", {"a": "it's é\n"}),
        (r'a = "\"\\"', {"a": '"\\'}),
        ("tags in [1, 'b', false, null]", {"tags": {"in": [1, "b", False, None]}}),
        ("tags in []", {"tags": {"in": []}}),
        ("exists doi", {"doi": {"exists": True}}),
        ("not exists doi", {"not": {"doi": {"exists": True}}}),
        ("a=1 or b=2 and c=3", {"or": [{"a": 1}, {"and": [{"b": 2}, {"c": 3}]}]}),
        ("not a=1 and b=2", {"and": [{"not": {"a": 1}}, {"b": 2}]}),
        ("(a=1 or b=2) and c=3", {"and": [{"or": [{"a": 1}, {"b": 2}]}, {"c": 3}]}),
        ("\t( (a=1) ) ", {"a": 1}),
        ("jahr = 1 and 年 = 2", {"and": [{"jahr": 1}, {"年": 2}]}),
        ("'in' = 1", {"in": 1}),
        (
            'lang = "en" and (year >= 2020 or not draft = true) and tags in ["a", "b"] '
            "and exists doi",
            {
                "and": [
                    {"lang": "en"},
                    {"or": [{"year": {">=": 2020}}, {"not": {"draft": True}}]},
                    {"tags": {"in": ["a", "b"]}},
                    {"doi": {"exists": True}},
                ]
            },
        ),
    ],
)
def test_a_line_of_text_is_the_filter_it_reads_like(text: str, where: dict[str, Any]) -> None:
    assert where_from_text(text) == where


SIGNS = "one of != <= >= = < > in"
NAME = "a field's name, in quotes if it is no bare word"
TEST = "expected one of != <= >= = < > in"
VALUE = "expected a number, true, false, null or a string in quotes"
SINGLE = "a number, true, false, null or a string in quotes"


@pytest.mark.parametrize(
    ("text", "at", "message"),
    [
        ("", 1, f"expected {NAME}, found the end"),
        ("a", 2, f"expected {SIGNS}, found the end"),
        ("a =", 4, "expected a value, found the end"),
        ("lang = en", 8, f"expected {SINGLE}, found 'en'"),
        ("a = 2020-01-01", 5, f"expected {SINGLE}, found '2020-01-01'"),
        ("a = NaN", 5, f"expected {SINGLE}, found 'NaN'"),
        ("a = 1e999", 5, "'1e999' is not a number that JSON can hold"),
        ("a = -Infinity", 5, "'-Infinity' is not a number that JSON can hold"),
        ("a == 1", 4, "expected a value, found '='; write = once"),
        ("a => 1", 4, "expected a value, found '>'"),
        ("a ! 1", 3, "'!' means nothing here; put names and strings in quotes"),
        ("a = 1; DROP", 6, "';' means nothing here; put names and strings in quotes"),
        ("a = 'x", 5, "the string that starts here has no end"),
        ("a = 'x\\'", 5, "the string that starts here has no end"),
        ("a = 'x\\", 5, "the string that starts here has no end"),
        ("a = '\\q'", 5, "\"'\\\\q'\" has an escape that JSON does not know"),
        ("a = '\\ud800'", 5, "a string with half a surrogate pair, which no document can hold"),
        ("a = 1 b = 2", 7, "expected 'and', 'or' or the end, found 'b'"),
        ("a = 1)", 6, "expected 'and', 'or' or the end, found ')'"),
        ("(a = 1", 7, "expected 'and', 'or' or ')', found the end"),
        ("a = 1 and", 10, f"expected {NAME}, found the end"),
        ("a = 1 AND b = 2", 7, "expected 'and', 'or' or the end, found 'AND'; write and"),
        ("(a = 1 OR b = 2)", 8, "expected 'and', 'or' or ')', found 'OR'; write or"),
        ("NOT a = 1", 5, f"{TEST}, found 'a'; write not for 'NOT'"),
        ("a = True", 5, f"{VALUE}, found 'True'; write true"),
        ("a != None", 6, f"{VALUE}, found 'None'; write null"),
        ("a in [False]", 7, f"{VALUE}, found 'False'; write false"),
        ("a IN [1]", 3, f"{TEST}, found 'IN'; write in"),
        ("a not in [1]", 3, f"{TEST}, found 'not'; write 'not' in front of the field"),
        ("a exists", 3, f"{TEST}, found 'exists'; write 'exists' in front of the field"),
        ("a is null", 3, f"{TEST}, found 'is'; write = null or != null"),
        ("a in 1", 6, "expected '[' and a list of values, found '1'"),
        ("a in [1 2]", 9, "expected ',' or ']', found '2'"),
        ("a in [1,]", 9, "expected a value, found ']'"),
        ("a in [[1]]", 7, "expected a value, found '['"),
        (f"a in {MANY}", 6, "a list of 10,001 values; at most 10,000 are taken"),
        ("exists 'x' = 1", 12, "expected 'and', 'or' or the end, found '='"),
        ("true = 1", 1, f"expected {NAME}, found 'true'"),
        ("5 = 1", 1, f"expected {NAME}, found '5'"),
        ("'not' = 1", 1, "no field can be called 'not' in a filter"),
        ("(" * 33 + "a=1", 33, "nested too deep; parentheses and 'not' may nest 32 deep"),
        ("not " * 9999, 129, "nested too deep; parentheses and 'not' may nest 32 deep"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_line_is_refused_by_position(text: str, at: int, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared below
        where_from_text(text)
    assert str(error.value) == f"filter, character {at}: {message}"


values = singles.map(lambda single: value_of(single, "drawn"))
conditions: st.SearchStrategy[Condition] = st.recursive(
    st.one_of(
        st.builds(Exists, names),
        st.builds(OneOf, names, st.frozensets(values, max_size=3)),
        st.builds(
            Ordered,
            names,
            st.sampled_from(["<", "<=", ">", ">="]),
            values.filter(lambda value: value.kind in ("number", "string")),
        ),
    ),
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(And, st.lists(inner, min_size=2, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


def printed(condition: Condition, quote: Any) -> str:
    """The condition as a line, names and strings in the quotes that `quote` puts around them."""

    def single(value: Value) -> str:
        return quote(value.value) if value.kind == "string" else json.dumps(value.value)

    match condition:
        case And(parts) | Or(parts):
            word = " and " if isinstance(condition, And) else " or "
            return word.join(f"({printed(part, quote)})" for part in parts)
        case Not(part):
            return f"not ({printed(part, quote)})"
        case Exists(name):
            return f"exists {quote(name)}"
        case Ordered(name, sign, value):
            return f"{quote(name)} {sign} {single(value)}"
        case OneOf(name, values):
            return f"{quote(name)} in [{', '.join(single(value) for value in values)}]"


def single_quoted(text: str) -> str:
    inside = json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"')
    return "'" + inside.replace("'", "\\'") + "'"


@pytest.mark.parametrize("quote", [json.dumps, single_quoted])
@patient
@given(condition=conditions)
def test_a_printed_condition_reads_back_as_itself(quote: Any, condition: Condition) -> None:
    assert parse_where(where_from_text(printed(condition, quote))) == condition


FRAGMENTS = [
    "a",
    "x.y",
    "and",
    "or",
    "not",
    "in",
    "exists",
    "(",
    ")",
    "[",
    "]",
    ",",
    "=",
    "!=",
    "<",
]
FRAGMENTS += [
    ">=",
    "1",
    "-1.5e3",
    "true",
    "null",
    "'s'",
    '"t"',
    "'",
    '"',
    "\\",
    " ",
    "\0",
    "é",
    "'or'",
]
lines = st.text() | st.lists(st.sampled_from(FRAGMENTS), max_size=20).map(" ".join)


@patient
@given(lines | st.text(st.characters(categories=["Cs", "Lu", "Po"])))
def test_any_text_is_a_filter_or_a_one_line_error(text: str) -> None:
    message = refusal(text)
    assert len(message.splitlines()) <= 1
    assert message.isprintable()


def refusal(text: str) -> str:
    """What a line is refused with; nothing if it is a filter."""
    try:
        parse_where(where_from_text(text))
    except ValueError as error:
        return str(error)
    return ""
