"""Reading an emotion out of an answer."""

import pytest

from humanomni.labels import EMOTIONS, LABEL_SETS, normalise_compound, normalise_label, parse_label_set


@pytest.mark.parametrize(
    ("answer", "emotion"),
    [
        ("sadness", "sadness"),
        (" Sad.\n", "sadness"),
        ("**Happy**!", "happiness"),
        ("no_emotion", "neutral"),
        ("No emotion.", "neutral"),
        ("none", "neutral"),
        ("The emotion is fear", "fear"),
        ("sad, a deep sorrow", "sadness"),
        ("worry", "anxiety"),
        ("TERRIFIED", "fear"),
        ("ＡＮＧＥＲ", "anger"),
    ],
)
def test_spellings_mean_one_emotion(answer: str, emotion: str) -> None:
    assert normalise_label(answer) == emotion


@pytest.mark.parametrize("answer", ["", "3", "hungry", "sad, angry", "sadness_surprise", "not angry", "happyish"])
def test_no_single_emotion_is_unparseable(answer: str) -> None:
    assert normalise_label(answer) is None


def test_classes_are_canonical_and_in_the_order_of_the_official_ids() -> None:
    for classes in LABEL_SETS.values():
        assert len(set(classes)) == len(classes)
        assert set(classes) <= set(EMOTIONS)
    assert LABEL_SETS["dfew"][0] == "happiness"
    assert LABEL_SETS["dfew"][6] == "fear"
    assert LABEL_SETS["mafw"][10] == "disappointment"
    assert {name: len(classes) for name, classes in LABEL_SETS.items()} == {
        "dfew": 7, "mafw": 11, "ravdess": 8, "mer2023": 6, "merr": 9, "toy": 7,
    }  # fmt: skip


def test_a_label_set_is_a_known_one_or_the_readers_own() -> None:
    assert parse_label_set("dfew") == LABEL_SETS["dfew"]
    assert parse_label_set("happy, sad, anger") == ("happiness", "sadness", "anger")
    for unknown in ("fer2013", "happy, bored", "happy"):
        with pytest.raises(ValueError, match="unknown label set"):
            parse_label_set(unknown)


@pytest.mark.parametrize(
    ("answer", "combination"),
    [
        ("sadness_surprise", "sadness_surprise"),
        ("Surprised and sad.", "sadness_surprise"),
        ("happy", "happiness"),
        ("anxious, helpless, sad", "sadness_anxiety_helplessness"),
        ("not angry", None),
        ("hungry", None),
    ],
)
def test_a_combination_is_the_same_in_whatever_order(answer: str, combination: str | None) -> None:
    assert normalise_compound(answer) == combination
