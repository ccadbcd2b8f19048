"""The `lexicon` judge: the embedded default, deterministic, without weights, microseconds a sentence.

It knows English words for emotions, cues and the ways of joining them (lexicon.yaml) and nothing of meaning
beyond them. That makes it a baseline: good at telling a supporting cue from a misleading one and a
consistent conclusion from a contradicting one in plain prose, blind to irony, to paraphrase and to whether
the cue is in the video.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from fgce.judges.base import JudgeError, SentenceLabel, SentenceRating
from fgce.judges.lexicon_data import CLEAR, DECISIVE, MISLEADING, WEAK, Lexicon, fold, load_lexicon, tokens_of
from fgce.judges.lexicon_reading import Reading, read
from fgce.schema import Function, JudgeInfo, MissingReason, ScoreMode
from fgce.sentences import split_sentences

LEXICON = Path(__file__).with_name("lexicon.yaml")

_FOREIGN_SHARE = 0.3  # of the letters: above this the text is not in a Latin script
_STUFFING = 3  # the same emotion this often in one sentence is no explanation
_PASS = 3  # fine-grained score from which a binary answer is 1

# A score and why.
_Verdict = tuple[int, str]


class LexiconJudge:
    """Implements `fgce.judges.base.Judge`."""

    decoding = ""

    def __init__(self) -> None:
        self._lexicon = load_lexicon(LEXICON)
        self._read = lru_cache(maxsize=8192)(lambda sentence: read(sentence, self._lexicon))
        self._language = lru_cache(maxsize=1024)(lambda text: foreign_language(text, self._lexicon))
        self._emotion_of = lru_cache(maxsize=1024)(self._lexicon.emotion_of)

    @property
    def info(self) -> JudgeInfo:
        return JudgeInfo(backend="lexicon", model="english", revision=self._lexicon.revision)

    async def label(self, sentence: str, explanation: str) -> SentenceLabel:
        """Raises JudgeError where the explanation is not English."""
        self._require_english(explanation)
        reading = self._read(sentence)
        confidence = round(1 - 0.5 ** (1 + min(reading.hits, 8)), 3)
        return SentenceLabel(function_of(reading), reading.modality, confidence)

    async def rate(
        self,
        sentence: str,
        explanation: str,
        function: Function,
        predicted_emotion: str,
        *,
        mode: ScoreMode,
        gen_explanation: bool,
    ) -> SentenceRating:
        """Raises JudgeError where the predicted emotion is not one word for one known emotion."""
        emotion = self._emotion_of(predicted_emotion)
        if emotion is None:
            detail = f"the lexicon judge knows no single emotion named '{predicted_emotion}'"
            raise JudgeError(MissingReason.UNSUPPORTED_EMOTION, detail)
        reading = self._read(sentence)
        score, why = _rate(reading, function, emotion, self._lexicon)
        if function != "conclusion" and len(sentence) > 10 and explanation.count(sentence) > 1:
            score, why = _lower((score, why), (1 if function == "information extraction" else 2, "said before"))
        if mode == "binary":
            score = int(score >= _PASS)
        return SentenceRating(score, f"{why[0].upper()}{why[1:]}." if gen_explanation else None)

    async def name_emotion(self, explanation: str, emotions: Sequence[str]) -> str | None:
        """The emotion that the sentences name most, a conclusion counting double; else the one their cues support.

        Raises JudgeError where the explanation is not English, or an emotion is not one word for one known emotion.
        """
        self._require_english(explanation)
        labels: dict[str, str] = {}
        for label in emotions:
            emotion = self._emotion_of(label)
            if emotion is None:
                detail = f"the lexicon judge knows no single emotion named '{label}'"
                raise JudgeError(MissingReason.UNSUPPORTED_EMOTION, detail)
            labels[emotion] = label
        readings = [self._read(sentence) for sentence in split_sentences(explanation)]
        return labels.get(conveyed([reading for reading in readings if not reading.addressed], list(labels)) or "")

    async def aclose(self) -> None:
        """Nothing to let go of."""

    def _require_english(self, explanation: str) -> None:
        language = self._language(explanation)
        if language:
            raise JudgeError(
                MissingReason.UNSUPPORTED_LANGUAGE,
                f"the lexicon judge knows English; this looks like {language}",
            )


def foreign_language(text: str, lexicon: Lexicon) -> str | None:
    """The language that a text is in, where that is certainly not English; None for English and for
    gibberish.
    """
    letters = [char for char in text if char.isalpha()]
    if sum(ord(char) > 0x24F for char in letters) > _FOREIGN_SHARE * len(letters):
        return "a non-Latin script"
    words = tokens_of(fold(text))
    counts = {
        language: sum(word in stop_words for word in words) for language, stop_words in lexicon.stop_words.items()
    }
    english = counts.pop("en")
    language = max(counts, key=lambda name: counts[name])
    return f"'{language}'" if counts[language] >= 2 and counts[language] > english else None


def function_of(reading: Reading) -> Function:
    """Step 1 by rules.

    Text that speaks to the judge is an extraction, so that it is scored, and scored 1: left out as `others`,
    it could take a bad sentence's weight with it.
    """
    has_evidence = bool(reading.observations) or reading.parts
    names_emotion = bool(reading.emotions or reading.denied or reading.affects)
    kinds = reading.kinds
    if names_emotion:
        states_it = not has_evidence and ("link" not in kinds or "person" in kinds)
        return "conclusion" if "conclusion" in kinds or states_it else "information analysis"
    if "unspecific" in kinds and "conclusion" in kinds:
        return "conclusion"
    if has_evidence and (("link" in kinds and reading.observations) or "unspecific" in kinds):
        return "information analysis"
    if has_evidence or reading.addressed or "irrelevant" in kinds or reading.mentioned:
        return "information extraction"
    return "others"


def conveyed(readings: Sequence[Reading], emotions: Sequence[str]) -> str | None:
    """The emotion that most of the readings speak for; None for none of `emotions`, or a tie to the last.

    A name counts 2, a word close to it 1, and both double in a conclusion, as in S_coh. Cues decide between equals,
    and where nothing is named: each counts by how far its strength is above a misleading one's.
    """
    named: Counter[str] = Counter()
    supported: Counter[str] = Counter()
    for reading in readings:
        weight = 2 if function_of(reading) == "conclusion" else 1
        for emotion in emotions:
            named[emotion] += weight * (2 * (emotion in reading.asserted) + (emotion in reading.related))
            supported[emotion] += sum(seen.strength(emotion) - MISLEADING for seen in reading.observations)
    ranks = sorted(((named[emotion], supported[emotion]), emotion) for emotion in emotions)
    (second, _), (best, emotion) = ranks[-2:]
    return emotion if best > second else None


def _rate(reading: Reading, function: Function, emotion: str, lexicon: Lexicon) -> _Verdict:
    """Step 2 on the fine-grained scale."""
    if reading.addressed:
        return 1, "speaks to the judge instead of about the person"
    if function == "conclusion":
        verdict = _rate_conclusion(reading, emotion, lexicon)
    elif function == "information analysis":
        verdict = _rate_analysis(reading, emotion, lexicon)
    else:
        verdict = _rate_extraction(reading, emotion)
    if max((reading.asserted + reading.related).values(), default=0) >= _STUFFING:
        verdict = _lower(verdict, (2, "repeats an emotion instead of explaining it"))
    return verdict


def _lower(one: _Verdict, other: _Verdict) -> _Verdict:
    """Where a low and a high criterion both apply, the lower wins."""
    return min(one, other, key=lambda verdict: verdict[0])


def _rate_extraction(reading: Reading, emotion: str) -> _Verdict:
    if not reading.observations:
        if "irrelevant" in reading.kinds:
            return 1, "says nothing about the person's emotion"
        return 2, f"no cue in it is known to support {emotion}"
    return _evidence(reading, emotion)


def _evidence(reading: Reading, emotion: str) -> _Verdict:
    """A misleading cue outweighs every other; else the strongest counts."""
    strengths = {seen.name: seen.strength(emotion) for seen in reading.observations}
    if MISLEADING in strengths.values():
        misleading = [name for name, strength in strengths.items() if strength == MISLEADING]
        return MISLEADING, f"'{misleading[0]}' does not support {emotion}"
    name = max(strengths, key=lambda cue: strengths[cue])
    words = {DECISIVE: "is a decisive cue for", CLEAR: "is a clear cue for", WEAK: "is compatible with"}
    return strengths[name], f"'{name}' {words[strengths[name]]} {emotion}"


def _rate_analysis(reading: Reading, emotion: str, lexicon: Lexicon) -> _Verdict:
    supporting = [seen for seen in reading.observations if seen.strength(emotion) >= CLEAR]
    misleading = [seen for seen in reading.observations if seen.strength(emotion) == MISLEADING]
    others = reading.emotions - {emotion} - lexicon.near[emotion]
    if others and emotion not in reading.emotions:
        return 1, f"reads the evidence as {min(others)}, not {emotion}"
    if emotion in reading.denied:
        return 1, f"denies {emotion}"
    if misleading and not supporting:
        return (1 if emotion in reading.emotions else 2), f"'{misleading[0].name}' does not support {emotion}"
    if misleading or others:
        return 2, f"its evidence is at odds with {emotion}"
    if "irrelevant" in reading.kinds and not reading.observations and not reading.parts:
        return 1, f"nothing in it is evidence of {emotion}"
    if emotion not in reading.emotions:
        fits = reading.emotions or any(emotion in lexicon.affects[affect] for affect in reading.affects)
        if reading.affects and not fits:
            return 2, f"its reading does not fit {emotion}"
        return (CLEAR if supporting and fits else WEAK), f"its reading is compatible with {emotion}"
    if not supporting:
        return 3, f"names {emotion} without a clear cue"
    explains = "link" in reading.kinds and "hedge" not in reading.kinds and emotion in reading.asserted
    strong = len(supporting) > 1 or supporting[0].strength(emotion) == DECISIVE
    if explains and strong:
        return 5, f"explains how '{supporting[0].name}' leads to {emotion}"
    return 4, f"'{supporting[0].name}' supports {emotion}"


def _rate_conclusion(reading: Reading, emotion: str, lexicon: Lexicon) -> _Verdict:
    """The conclusion's rubric sees only its sentence, and its wording only: cues in it are not weighed."""
    others = reading.emotions - {emotion} - lexicon.near[emotion]
    if emotion in reading.denied:
        return 1, f"denies {emotion}"
    if emotion in reading.emotions:
        if others:
            return 3, f"names {emotion} and {min(others)}"
        precise = emotion in reading.asserted and "hedge" not in reading.kinds
        return (5, f"states {emotion}") if precise else (4, f"states {emotion} in a roundabout way")
    if others:
        return 1, f"states {min(others)}, not {emotion}"
    if reading.emotions:
        return 2, f"states {min(reading.emotions)}, which is only close to {emotion}"
    if reading.affects:
        fits = all(emotion in lexicon.affects[affect] for affect in reading.affects)
        return (3, f"fits {emotion} without naming it") if fits else (1, f"does not fit {emotion}")
    return 2, "names no emotion"
