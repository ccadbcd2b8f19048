"""Whatever constrained decoding can give is an answer: it fits into its tokens, and it is read."""

import json

import pytest

from fgce.judges.base import Answer
from fgce.judges.protocols import Completion, Query, make_protocol
from fgce.rubric import load_rubric
from fgce.schema import ScoreMode, Usage

RUBRIC = load_rubric()


def longest_answer(query: Query, character: str = "x") -> str:
    """The longest answer that the query's constraint allows, with free text made of `character`."""
    if query.choices:
        return max(query.choices, key=len)
    answer = {}
    for name, schema in query.schema["properties"].items():
        free = schema.get("type") == "string"
        answer[name] = (
            character * schema["maxLength"] if free else max(schema["enum"], key=lambda value: len(str(value)))
        )
    return json.dumps(answer, ensure_ascii=False)


@pytest.mark.parametrize("explain", [False, True])
@pytest.mark.parametrize("protocol", ["json", "fast"])
@pytest.mark.parametrize("mode", ["fine_grained", "binary"])
def test_the_longest_answer_fits_into_its_tokens(protocol, mode: ScoreMode, explain: bool):
    """A token is a byte at least; the fast protocol's codes are two characters, and a score one digit."""
    asked = make_protocol(protocol, RUBRIC)
    rating = asked.ask_rating("One.", "One.", "conclusion", "sad", mode, explain)
    for query in (asked.ask_label("One.", "One."), rating):
        assert len(longest_answer(query, "\N{GRINNING FACE}").encode()) <= query.max_tokens


@pytest.mark.parametrize("character", ["\t", "\x01", "\u2028", "\N{GRINNING FACE}", "}"])
def test_a_reason_may_hold_any_character_that_its_grammar_lets_pass(character: str):
    """xgrammar keeps quotes, backslashes and line ends out of a string, and nothing else."""
    asked = make_protocol("json", RUBRIC)
    raw = '{"score": 4, "explanation": "' + character * 9 + '"}'
    rating = asked.read_rating(Completion(Answer(raw, Usage())), "fine_grained")
    assert (rating.score, rating.explanation) == (4, character * 9)
