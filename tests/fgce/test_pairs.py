"""The lexicon judge ranks 120 hand-written pairs: coherent against contradictory, irrelevant, conclusion-less,
injected.
"""

import asyncio
from pathlib import Path

import pytest
import yaml

from fgce.judges.lexicon import LexiconJudge
from fgce.rubric import load_rubric
from fgce.schema import ScoreItem, ScoreRequest
from fgce.scorer import Scorer

ENTRIES = yaml.safe_load((Path(__file__).parents[1] / "data/fgce/pairs.yaml").read_text(encoding="utf-8"))
SCORER = Scorer(LexiconJudge(), load_rubric())
KINDS = {
    "contradictory": ("cues", "contradiction"),
    "irrelevant": ("irrelevant", "conclusion"),
    "conclusion-less": ("cues", "analysis"),
    "injected": ("cues", "injection"),
}


def s_coh(entry: dict[str, str], parts: tuple[str, ...]) -> float:
    text = " ".join(entry[part] for part in parts)
    item = ScoreItem(id="a", explanation=text, predicted_emotion=entry["emotion"])
    return asyncio.run(SCORER.score(ScoreRequest(items=[item]))).results[0].score or 0.0


def wrong_pairs(entries: list[dict[str, str]]) -> list[str]:
    """Pairs whose coherent text does not score strictly higher."""
    wrong = []
    for entry in entries:
        best = s_coh(entry, ("cues", "analysis", "conclusion"))
        for kind, parts in KINDS.items():
            worse = s_coh(entry, parts)
            if best <= worse:
                wrong.append(f"{kind}: {entry['emotion']}: {entry['cues'][:40]}… {best:.2f} <= {worse:.2f}")
    return wrong


def test_there_are_120_pairs():
    assert len(ENTRIES) * len(KINDS) == 120


@pytest.mark.parametrize("half", [slice(0, 15), slice(15, 30)], ids=["adjusted on", "held out"])
def test_at_least_95_percent_rank_right(half: slice):
    wrong = wrong_pairs(ENTRIES[half])
    assert len(wrong) <= 0.05 * 60, "\n".join(wrong)
