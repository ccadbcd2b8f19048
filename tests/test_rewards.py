"""Rewards as GRPO calls them: numbers of the specification, a judge that answers, and one that does not."""

import asyncio
from collections.abc import Iterator

import pytest
import torch
from server_process import server_process

from fgce.client import FgceClient
from humanomni.training.grpo_trainer import comparable_rewards
from humanomni.training.judge_watch import JudgeWatch
from humanomni.training.rewards import CoherenceReward, accuracy, format, make_rewards

COHERENT = (
    "<think>Her brows are lowered and drawn together. Her voice is loud. The lowered brows and the loud voice suggest "
    "anger. Overall, she is angry.</think>\n<answer>angry</answer>"
)
INCOHERENT = "<think>The wall behind her is grey. She smiles happily.</think>\n<answer>anger</answer>"
WRONG = COHERENT.replace("<answer>angry", "<answer>sadness")
NO_FORMAT = "She is angry."


@pytest.fixture(scope="module")
def judge_url() -> Iterator[str]:
    with server_process("--set", "judge.backend=lexicon") as (url, _):
        yield url


def completions(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def score(reward: CoherenceReward, *texts: str, truth: str = "anger") -> list[float | None]:
    return asyncio.run(reward(completions(*texts), [truth] * len(texts)))


def test_accuracy_and_format() -> None:
    texts = [COHERENT, WRONG, NO_FORMAT, f" {COHERENT}"]
    assert accuracy(completions(*texts), ["anger"] * 4) == [1.0, 0.0, 0.0, 1.0]
    assert format(completions(*texts)) == [1.0, 1.0, 0.0, 0.0]


def test_weighted_coherence_needs_a_right_answer_and_prefers_coherence(judge_url: str) -> None:
    reward = CoherenceReward(FgceClient(judge_url), weighted=True)
    coherent, incoherent, wrong, no_format = score(reward, COHERENT, INCOHERENT, WRONG, NO_FORMAT)
    assert coherent > 0.7 > 0.5 > incoherent >= 0
    assert wrong == no_format == 0.0
    assert (reward.asked, reward.missing) == (2, 0)


def test_unweighted_coherence_judges_wrong_answers_against_what_they_say(judge_url: str) -> None:
    reward = CoherenceReward(FgceClient(judge_url), weighted=False)
    coherent, wrong, no_format = score(reward, COHERENT, WRONG, NO_FORMAT)
    assert coherent > wrong > 0
    assert no_format == 0.0


def test_a_dead_judge_gives_none_where_it_was_needed() -> None:
    reward = CoherenceReward(FgceClient("http://127.0.0.1:9", deadline=2), weighted=True)
    assert score(reward, COHERENT, WRONG) == [None, 0.0]
    assert (reward.asked, reward.missing) == (1, 1)


def test_names_are_upstreams_too_and_unknown_ones_are_refused() -> None:
    client = FgceClient("http://127.0.0.1:9")
    names = [reward.__name__ for reward in make_rewards(["accuracy", "FGCE_weighted"], client)]
    assert names == ["accuracy", "fgce_weighted"]
    with pytest.raises(ValueError, match="acuracy"):
        make_rewards(["acuracy"], client)


def test_siblings_are_compared_on_the_rewards_that_all_of_them_have() -> None:
    nan = torch.nan
    rewards = torch.tensor([[1, 0.9], [1, nan], [0, 0], [1, 0.5], [nan, nan], [nan, nan]])
    unreadable = torch.tensor([False, False, False, False, True, True])
    expected = torch.tensor([[1, nan], [1, nan], [0, 0], [1, 0.5], [nan, nan], [nan, nan]])
    torch.testing.assert_close(comparable_rewards(rewards, unreadable, 2), expected, equal_nan=True)


def test_the_watch_speaks_up_when_the_window_is_full_and_too_much_is_missing() -> None:
    watch = JudgeWatch(window=3, max_missing=0.5)
    for asked, missing in [(10, 10), (10, 10)]:
        watch.add(asked, missing)
        assert watch.message is None
    watch.add(0, 0)
    assert "20 of 20" in watch.message
    for _ in range(3):
        watch.add(10, 5)
    assert watch.message is None
