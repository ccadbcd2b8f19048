"""Rewards of GRPO, by name: format, accuracy, and the coherence of the explanation as an FG-CE server judges it.

A reward function gets completions and the records' columns and returns one number a completion, or None where there is
no telling: a clip that could not be read, a judge that did not answer.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from fgce.client import FgceClient
from fgce.monitors import monitor
from fgce.schema import ExplanationScore, ScoreItem, ScoreResponse
from humanomni.completion import Completion, is_correct, parse_completion
from humanomni.labels import normalise_label

Message = dict[str, str]
RewardFunction = Callable[..., list[float | None] | Awaitable[list[float | None]]]


def text_of(completion: Sequence[Message] | str) -> str:
    """The text of a completion, which TRL gives as a list with one message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def accuracy(completions: Sequence[Sequence[Message]], solution: Sequence[str], **_: Any) -> list[float | None]:
    """1 where the completion holds the pattern and its answer means the true emotion, else 0."""
    return [float(is_correct(text_of(c), truth)) for c, truth in zip(completions, solution, strict=True)]


def format(completions: Sequence[Sequence[Message]], **_: Any) -> list[float | None]:  # noqa: A001 - the field's name for it
    """1 where the whole completion is ``<think>…</think>`` white space ``<answer>…</answer>``, else 0."""
    return [float(parse_completion(text_of(c)).well_formed) for c in completions]


class CoherenceReward:
    """Normalised S_coh of the explanation, judged against the answer that the model gave (FG-CE as a reward).

    Weighted: 0 unless format and answer are right, as in the paper; then the weighted mean over the sentences.
    Unweighted: the plain mean, for right and wrong answers alike. A missing judgement is None, never a low number; the
    authors' release gives -0.25 there, below a wrong answer.

    Args:
        client: where to ask.
        weighted: with gate and weights, or without both.

    Attributes:
        asked, missing: explanations sent to the judge in the last call, and those of them without a score.
        response: the judge's last answer.
        results: what it said of each row that was sent.
    """

    def __init__(self, client: FgceClient, weighted: bool) -> None:
        self.client = client
        self.weighted = weighted
        self.__name__ = "fgce_weighted" if weighted else "fgce_unweighted"
        self.asked = self.missing = 0
        self.response = ScoreResponse(rubric=None, judge=None, results=[])
        self.results: dict[int, ExplanationScore] = {}
        self._background = ThreadPoolExecutor(1, thread_name_prefix=self.__name__)
        self._begun: tuple[list[str], Future[_Judged]] | None = None

    def begin(self, completions: Sequence[Sequence[Message]], solution: Sequence[str]) -> None:
        """Asks the judge in the background; a call for these completions then waits for that answer."""
        texts = [text_of(completion) for completion in completions]
        self._begun = (texts, self._background.submit(self._judge, texts, list(solution)))

    async def __call__(
        self,
        completions: Sequence[Sequence[Message]],
        solution: Sequence[str],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        texts = [text_of(completion) for completion in completions]
        if self._begun is None or self._begun[0] != texts:
            self.begin(completions, solution)
        assert self._begun is not None
        started = time.perf_counter()
        judged = await asyncio.wrap_future(self._begun[1])
        self._begun = None
        self.response, self.results = judged.response, dict(zip(judged.rows, judged.response.results, strict=True))
        self.asked = len(judged.rows)
        self.missing = sum(result.status == "missing" for result in judged.response.results)
        if log_metric is not None:
            log_metric(f"{self.__name__}/seconds", judged.seconds)
            log_metric(f"{self.__name__}/seconds_waited", time.perf_counter() - started)
            log_metric(f"{self.__name__}/missing", self.missing)
            for name, value in asdict(monitor(judged.response.results)).items():
                log_metric(f"{self.__name__}/{name}", value)
        rewards: list[float | None] = [0.0] * len(texts)
        for row, result in self.results.items():
            rewards[row] = self._value(result)
        return rewards

    def _judge(self, texts: list[str], solution: list[str]) -> "_Judged":
        parsed = [parse_completion(text) for text in texts]
        rows = [
            row
            for row, (text, truth) in enumerate(zip(texts, solution, strict=True))
            if (is_correct(text, truth) if self.weighted else parsed[row].holds_pattern)
        ]
        started = time.perf_counter()
        response = self.client.score_sync([_item(row, parsed[row]) for row in rows])
        return _Judged(rows, response, time.perf_counter() - started)

    def _value(self, result: ExplanationScore) -> float | None:
        if result.status == "missing":
            return None
        return result.normalised if self.weighted else result.unweighted_normalised


@dataclass(frozen=True)
class _Judged:
    """Rows that were sent, the answer, and the seconds that it took."""

    rows: list[int]
    response: ScoreResponse
    seconds: float


def _item(row: int, completion: Completion) -> ScoreItem:
    answer = completion.answer or ""
    return ScoreItem(
        id=str(row), explanation=completion.think or "", predicted_emotion=normalise_label(answer) or answer
    )


# Names as in configurations and logs; upstream's spellings differ in case alone.
REWARDS: dict[str, Callable[[FgceClient], RewardFunction]] = {
    "accuracy": lambda _: accuracy,
    "format": lambda _: format,
    "fgce_weighted": lambda client: CoherenceReward(client, weighted=True),
    "fgce_unweighted": lambda client: CoherenceReward(client, weighted=False),
}


def make_rewards(names: Sequence[str], client: FgceClient) -> list[RewardFunction]:
    """The reward functions of these names.

    Raises:
        ValueError: for a name that is not registered.
    """
    if unknown := [name for name in names if name.lower() not in REWARDS]:
        raise ValueError(f"unknown rewards {unknown}; known are {', '.join(REWARDS)}")
    return [REWARDS[name.lower()](client) for name in names]
