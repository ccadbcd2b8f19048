"""Judges: who answers the two questions about a sentence."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from fgce.judges.base import Judge
from fgce.judges.lexicon import LexiconJudge
from fgce.rubric import Rubric


class LexiconConfig(BaseModel):
    """The embedded judge; it has nothing to set."""

    model_config = ConfigDict(extra="forbid")
    backend: Literal["lexicon"] = "lexicon"


JudgeConfig = LexiconConfig


def build_judge(config: JudgeConfig, rubric: Rubric) -> Judge:
    """The judge that a configuration names."""
    return LexiconJudge()
