"""What transformers' generate() asks of each token, with fewer kernels a step than its own classes launch.

Those look for the tokens to suppress among all words at every step, and spread over the rows a length that the loop
knows itself: sixteen operations of torch's a token, some of them several kernels, where nine do.
"""

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
)


class _Suppression(LogitsProcessor):
    """Tokens that are never chosen; changes the scores that it is given."""

    def __init__(self, tokens: Tensor) -> None:
        self._tokens = tokens.long()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill_(1, self._tokens.to(scores.device), -torch.inf)


def scoring(processors: Iterable[LogitsProcessor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The same scores from the same processors; they may be written in the place of the logits."""
    in_place = LogitsProcessorList(
        _Suppression(processor.suppress_tokens) if type(processor) is SuppressTokensLogitsProcessor else processor
        for processor in processors
    )
    return cast(Callable[[Tensor, Tensor], Tensor], in_place)


class Ending:
    """Which rows end, by the same criteria but for a maximum of tokens, which is left to the loop."""

    def __init__(self, criteria: Iterable[StoppingCriteria]) -> None:
        criteria = list(criteria)
        self._end_tokens = [criterion.eos_token_id for criterion in criteria if type(criterion) is EosTokenCriteria]
        known = (EosTokenCriteria, MaxLengthCriteria)
        self._others = StoppingCriteriaList(criterion for criterion in criteria if type(criterion) not in known)

    def strike_out(self, going_on_B: Tensor, ids_BS: Tensor) -> None:
        """Sets ``going_on_B`` to False where the row ends with the latest of its tokens."""
        for tokens in self._end_tokens:
            going_on_B &= (ids_BS[:, -1:] != tokens.to(ids_BS.device)).all(dim=1)
        if self._others:
            going_on_B &= ~self._others(ids_BS, None)
