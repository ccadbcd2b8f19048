"""From sentence scores to the sample-level score S_coh (FG-CE, "S_coh formula")."""

from collections import Counter
from collections.abc import Sequence

from fgce.schema import SCALES, ExplanationScore, ScoreMode, SentenceScore


def aggregate(
    id: str,
    sentences: Sequence[SentenceScore],
    *,
    mode: ScoreMode = "fine_grained",
    max_missing_share: float = 0.5,
) -> ExplanationScore:
    """S_coh = sum(w_j * score_j) / sum(w_j) over scored sentences, with the decided edge cases.

    - More than `max_missing_share` of the sentences missing, or some missing and none scored: the
      explanation is missing, for the reason met most often.
    - No sentence missing and none scored (all `others`, or no sentence): normalised 0, flag `no_evidence`.
      The authors' release gives -0.25 here, below a wrong answer's 0.
    """
    sentences = list(sentences)
    scored = [s for s in sentences if s.status == "ok" and s.score is not None]
    lost = Counter(s.reason for s in sentences if s.status == "missing" and s.reason)
    flags = sorted(reason.value for reason in lost)
    if lost and (not scored or lost.total() > max_missing_share * len(sentences)):
        reason = min(lost, key=lambda r: (-lost[r], r))
        example = next(s.detail for s in sentences if s.reason == reason)
        detail = f"{lost.total()} of {len(sentences)} sentences have no score; {example or reason}"
        return ExplanationScore(id=id, status="missing", reason=reason, detail=detail, flags=flags, sentences=sentences)
    if not scored:
        return ExplanationScore(
            id=id,
            status="ok",
            flags=["no_evidence"],
            normalised=0.0,
            unweighted_normalised=0.0,
            sentences=sentences,
        )
    weighted = _mean([(s.weight, s.score) for s in scored if s.score is not None])
    unweighted = _mean([(1.0, s.score) for s in scored if s.score is not None])
    likely = [(s.weight, s.expected) for s in scored if s.expected is not None]
    expected = _mean(likely) if len(likely) == len(scored) else None
    return ExplanationScore(
        id=id,
        status="ok",
        flags=(["partial"] if lost else []) + flags,
        score=weighted,
        normalised=normalise(weighted, mode),
        unweighted=unweighted,
        unweighted_normalised=normalise(unweighted, mode),
        expected=expected,
        expected_normalised=None if expected is None else normalise(expected, mode),
        sentences=sentences,
    )


def normalise(score: float, mode: ScoreMode = "fine_grained") -> float:
    """Place of a score on its scale, in [0, 1]; (S_coh - 1) / 4 on the fine-grained one."""
    low, high = SCALES[mode]
    return (score - low) / (high - low)


def _mean(weighted: Sequence[tuple[float, float]]) -> float:
    return sum(weight * score for weight, score in weighted) / sum(weight for weight, _ in weighted)
