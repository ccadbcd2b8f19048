"""Settings of sampling and of rejection; their values, with reasons, are in configs/caemer/."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from humanomni.prompts import MODALITIES

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Score = Annotated[float, Field(ge=1, le=5)]


class CandidateSettings(BaseModel):
    """Keys of configs/caemer/candidates.yaml: how an RL checkpoint's candidates are drawn."""

    model_config = ConfigDict(extra="forbid")
    n: Count
    temperatures: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    top_k: Annotated[int, Field(ge=0)]
    seed: int
    max_new_tokens: Count
    modal: Literal[tuple(MODALITIES)]  # type: ignore[valid-type] # the names as data


class RftSettings(BaseModel):
    """Keys of configs/caemer/rft.yaml: what is filtered, how it is put together, what is kept."""

    model_config = ConfigDict(extra="forbid")
    # filter
    min_sentence_score: Annotated[int, Field(ge=1, le=5)]
    min_agreement: Share
    near_duplicate: Annotated[float, Field(gt=0, le=1)]
    # reassemble
    reassemble: bool
    max_extractions: Count
    max_analyses: Count
    between_modalities: str
    before_conclusion: str
    # re-evaluate
    min_s_coh: Score
    min_gain: Annotated[float, Field(ge=0)]
    max_second_judge_loss: Annotated[float, Field(ge=0)]
    keep_candidates: bool
    # over the data set
    near_copy: Annotated[float, Field(gt=0, le=1)]
    max_near_copies: Count
    max_class_ratio: Annotated[float, Field(ge=1)]
    cold_start_share: Annotated[float, Field(ge=0, lt=1)]
    seed: int

    @model_validator(mode="after")
    def _something_is_kept(self) -> Self:
        if not (self.reassemble or self.keep_candidates):
            raise ValueError("reassemble and keep_candidates are both false: no clip could be kept")
        return self
