"""What is kept: a clip's decision (filter, reassemble, re-evaluate), then copies and classes over the data set."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from statistics import median
from typing import Literal

from fgce.schema import ExplanationScore
from humanomni.rft.candidates import Candidate, SampledClip
from humanomni.rft.judging import StrictJudge, value_of
from humanomni.rft.reassemble import CHAIN, Reassembly, reassemble
from humanomni.rft.sentences import evidence, filter_sentences
from humanomni.rft.settings import RftSettings
from humanomni.rft.wording import words_of

# "reassembled" and "candidate" are kept, everything else says why a clip fell.
Outcome = Literal[
    "reassembled",
    "candidate",
    "no_single_emotion",
    "no_candidate_of_the_format",
    "no_candidate_right",
    "not_scorable",
    "chain_incomplete",
    "below_threshold",
    "no_gain",
    "second_judge",
    "near_copy",
    "class_cap",
]
KEPT: tuple[Outcome, ...] = ("reassembled", "candidate")


@dataclass(frozen=True)
class Decision:
    """What became of one clip.

    Attributes:
        clip: its candidates.
        outcome: kept, or why not.
        dropped: sentences of right candidates by the reason for which the filter dropped them.
        best: the best right candidate, and `before`, its S_coh in [1, 5]; None where no right one could be scored.
        reassembly: the new text, where one was put together, and `after`, its S_coh.
        second: S_coh of best candidate and chosen text by the second judge; None without one.
        evidence: modalities that the clip has evidence for.
    """

    clip: SampledClip
    outcome: Outcome
    dropped: Mapping[str, int]
    best: Candidate | None = None
    before: float | None = None
    reassembly: Reassembly | None = None
    after: float | None = None
    second: tuple[float, float] | None = None
    evidence: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        return self.outcome in KEPT

    @property
    def text(self) -> str:
        """The explanation that the clip is kept with."""
        if self.outcome == "candidate" or self.reassembly is None:
            return self.best.explanation if self.best else ""
        return self.reassembly.text

    @property
    def s_coh(self) -> float:
        """Of `text`; 0 where nothing was scored."""
        return (self.before if self.outcome == "candidate" else self.after) or 0.0


def decide(
    clips: Sequence[SampledClip],
    silent: frozenset[str],
    judge: StrictJudge,
    second_judge: StrictJudge | None,
    settings: RftSettings,
) -> list[Decision]:
    """A decision a clip, in order.

    Args:
        silent: ids of clips without sound.
        second_judge: guards against what only pleases the first; None: no guard.

    Raises:
        JudgeFailedError: a judge left texts without a score.
    """
    right = {clip.id: [one for one in clip.candidates if one.well_formed and one.correct] for clip in clips}
    texts = {(one.explanation, str(clip.truth)) for clip in clips if clip.truth for one in right[clip.id]}
    first = _Scores(judge, texts)
    drafts = [_draft(clip, right[clip.id], first, clip.id not in silent, settings) for clip in clips]
    first.add((draft.reassembly.text, str(draft.clip.truth)) for draft in drafts if draft.reassembly)
    chosen = [_choose(draft, first, settings) for draft in drafts]
    if second_judge:
        chosen = _guard(chosen, second_judge, settings)
    return cap_classes(drop_near_copies(chosen, settings), settings)


class _Scores:
    """A judge's scores of (explanation, emotion) pairs; each is asked for once."""

    def __init__(self, judge: StrictJudge, texts: Iterable[tuple[str, str]]) -> None:
        self._judge = judge
        self._known: dict[tuple[str, str], ExplanationScore] = {}
        self.add(texts)

    def add(self, texts: Iterable[tuple[str, str]]) -> None:
        new = sorted(set(texts) - self._known.keys())
        self._known |= zip(new, self._judge.score(new), strict=True)

    def of(self, explanation: str, emotion: str) -> ExplanationScore:
        return self._known[explanation, emotion]


def _draft(
    clip: SampledClip, right: Sequence[Candidate], scores: _Scores, has_audio: bool, settings: RftSettings
) -> Decision:
    """The best candidate and, where the chain holds, a reassembly without its score yet."""
    if clip.truth is None:
        return Decision(clip, "no_single_emotion", {})
    if not right:
        formed = any(one.well_formed for one in clip.candidates)
        return Decision(clip, "no_candidate_right" if formed else "no_candidate_of_the_format", {})
    scored = [(one, scores.of(one.explanation, clip.truth)) for one in right]
    values = [(value, one) for one, score in scored if (value := value_of(score)) is not None]
    if not values:
        return Decision(clip, "not_scorable", {})
    before, best = max(values, key=lambda pair: (pair[0], -pair[1].index))
    kept, dropped = filter_sentences(scored, has_audio, settings)
    cited = evidence(scored, kept, settings.min_agreement)
    reassembly = reassemble(kept, cited, settings) if settings.reassemble else None
    outcome = _fallback(best, before, scores.of(best.explanation, clip.truth), has_audio, settings)
    return Decision(clip, outcome, dropped, best, before, reassembly, None, None, tuple(sorted(cited)))


def _fallback(
    best: Candidate, before: float, score: ExplanationScore, has_audio: bool, settings: RftSettings
) -> Outcome:
    """The outcome where reassembly gives nothing better: the best candidate, if there is nothing to mend in it."""
    if settings.reassemble:
        complete = set(CHAIN) <= {sentence.function for sentence in score.sentences}
        if not complete or filter_sentences([(best, score)], has_audio, settings)[1]:
            return "chain_incomplete"
    return "candidate" if settings.keep_candidates and before >= settings.min_s_coh else "below_threshold"


def _choose(draft: Decision, scores: _Scores, settings: RftSettings) -> Decision:
    """Re-evaluates: the reassembly where it beats the best candidate and the threshold, else what `_fallback` said."""
    if draft.reassembly is None or draft.before is None:
        return draft
    after = value_of(scores.of(draft.reassembly.text, str(draft.clip.truth)))
    outcome: Outcome = "reassembled"
    if after is None:
        outcome = "not_scorable"
    elif after < settings.min_s_coh:
        outcome = "below_threshold"
    elif after < draft.before + settings.min_gain:
        outcome = "no_gain"
    if outcome != "reassembled" and draft.kept:
        outcome = draft.outcome
    return replace(draft, after=after, outcome=outcome)


def _guard(decisions: Sequence[Decision], judge: StrictJudge, settings: RftSettings) -> list[Decision]:
    """Drops what the second judge likes less than the best candidate, by more than the settings allow."""
    pairs = {one.clip.id: (one.best.explanation, one.text) for one in decisions if one.kept and one.best}
    scores = _Scores(judge, ((text, str(one.clip.truth)) for one in decisions for text in pairs.get(one.clip.id, ())))
    guarded = []
    for one in decisions:
        if one.clip.id in pairs:
            before, after = (value_of(scores.of(text, str(one.clip.truth))) for text in pairs[one.clip.id])
            if before is None or after is None:
                one = replace(one, outcome="not_scorable")
            else:
                one = replace(one, second=(before, after))
                if after < before - settings.max_second_judge_loss:
                    one = replace(one, outcome="second_judge")
        guarded.append(one)
    return guarded


def drop_near_copies(decisions: Sequence[Decision], settings: RftSettings) -> list[Decision]:
    """Keeps at most `max_near_copies` of nearly the same explanation of one emotion, the best first."""
    fallen: set[str] = set()
    groups: dict[str | None, list[tuple[frozenset[str], list[str]]]] = defaultdict(list)
    for one in _best_first(decisions):
        words = frozenset(words_of(one.text))
        copies = groups[one.clip.truth]
        for known, ids in copies:
            if len(words & known) >= settings.near_copy * len(words | known):
                ids.append(one.clip.id)
                if len(ids) > settings.max_near_copies:
                    fallen.add(one.clip.id)
                break
        else:
            copies.append((words, [one.clip.id]))
    return [replace(one, outcome="near_copy") if one.clip.id in fallen else one for one in decisions]


def cap_classes(decisions: Sequence[Decision], settings: RftSettings) -> list[Decision]:
    """Keeps at most `max_class_ratio` times the median class's clips of each class, the best first."""
    counts = Counter(one.clip.truth for one in decisions if one.kept)
    if not counts:
        return list(decisions)
    cap = ceil(settings.max_class_ratio * median(counts.values()))
    taken: Counter[str | None] = Counter()
    fallen = set()
    for one in _best_first(decisions):
        taken[one.clip.truth] += 1
        if taken[one.clip.truth] > cap:
            fallen.add(one.clip.id)
    return [replace(one, outcome="class_cap") if one.clip.id in fallen else one for one in decisions]


def _best_first(decisions: Sequence[Decision]) -> list[Decision]:
    return sorted((one for one in decisions if one.kept), key=lambda one: (-one.s_coh, one.clip.id))
