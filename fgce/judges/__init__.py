"""Judges: who answers the two questions about a sentence."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fgce.judges.base import Judge
from fgce.judges.lexicon import LexiconJudge
from fgce.judges.model import Engine, ModelJudge
from fgce.judges.openai import OpenAIConfig, OpenAIEngine
from fgce.judges.protocols import make_protocol
from fgce.judges.vllm import VllmConfig, VllmEngine
from fgce.rubric import Rubric
from fgce.schema import JudgeInfo


class LexiconConfig(BaseModel):
    """The embedded judge; it has nothing to set."""

    model_config = ConfigDict(extra="forbid")
    backend: Literal["lexicon"] = "lexicon"


JudgeConfig = Annotated[LexiconConfig | OpenAIConfig | VllmConfig, Field(discriminator="backend")]


def build_judge(config: JudgeConfig, rubric: Rubric) -> Judge:
    """The judge that a configuration names."""
    if isinstance(config, LexiconConfig):
        return LexiconJudge()
    engine: Engine = OpenAIEngine(config) if isinstance(config, OpenAIConfig) else VllmEngine(config)
    info = JudgeInfo(backend=config.backend, model=config.model, revision=config.revision or "main")
    return ModelJudge(engine, make_protocol(config.protocol, rubric), info)
