"""The yield report: how many clips came through, why the others fell, scores before and after, examples."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from humanomni.rft.selection import KEPT, Decision, Outcome
from humanomni.rft.settings import RftSettings

_EXAMPLES = 5  # reassembled texts shown in full, of the largest gains
_FALLEN_EXAMPLES = 2  # a reason

_WORDS: dict[Outcome, str] = {
    "reassembled": "kept: reassembled from the best sentences",
    "candidate": "kept: the best candidate, in which nothing is to be mended",
    "no_single_emotion": "its label names no single known emotion",
    "no_candidate_of_the_format": "no candidate has the format",
    "no_candidate_right": "no candidate of the format has the right answer",
    "not_scorable": "the judge cannot score the text (language, length, emotion)",
    "chain_incomplete": "no extraction, no analysis or no conclusion passed the filter",
    "below_threshold": "the result is below min_s_coh",
    "no_gain": "the result does not beat the best candidate",
    "second_judge": "the second judge likes the result less than the best candidate",
    "near_copy": "nearly the same explanation is kept often enough",
    "class_cap": "its emotion has clips enough",
}


def yield_report(
    decisions: Sequence[Decision],
    cold_start: dict[str, int] | None,
    judges: dict[str, Any],
    settings: RftSettings,
) -> dict[str, Any]:
    """Everything as plain JSON; the same decisions give the same report."""
    outcomes = Counter(one.outcome for one in decisions)
    kept = [one for one in decisions if one.kept]
    reassembled = [one for one in decisions if one.outcome == "reassembled"]
    return {
        "clips": len(decisions),
        "kept": len(kept),
        "yield": len(kept) / len(decisions),
        "outcomes": {outcome: outcomes[outcome] for outcome in _WORDS if outcomes[outcome]},
        "sentences_dropped": dict(sorted(sum((Counter(one.dropped) for one in decisions), Counter()).items())),
        "s_coh": {
            "best_candidate": _mean([one.before for one in kept]),
            "kept": _mean([one.s_coh for one in kept]),
            "reassembled_before": _mean([one.before for one in reassembled]),
            "reassembled_after": _mean([one.after for one in reassembled]),
        },
        "second_judge": {
            "before": _mean([one.second[0] if one.second else None for one in kept]),
            "after": _mean([one.second[1] if one.second else None for one in kept]),
        },
        "evidence_covered": _mean([_covered(one) for one in reassembled]),
        "by_class": {
            str(truth): {
                "clips": sum(one.clip.truth == truth for one in decisions),
                "kept": sum(one.clip.truth == truth for one in kept),
            }
            for truth in sorted({str(one.clip.truth) for one in decisions})
        },
        "cold_start": cold_start,
        "judges": judges,
        "settings": settings.model_dump(mode="json"),
        "examples": [_example(one) for one in sorted(reassembled, key=_by_gain)[:_EXAMPLES]],
        "fallen_examples": {
            outcome: [_example(one) for one in decisions if one.outcome == outcome][:_FALLEN_EXAMPLES]
            for outcome in _WORDS
            if outcomes[outcome] and outcome not in KEPT
        },
    }


def outcome_line(decision: Decision) -> dict[str, Any]:
    """What became of one clip, for the file that lists all of them."""
    return {
        "id": decision.clip.id,
        "truth": decision.clip.truth,
        "outcome": decision.outcome,
        "right_candidates": sum(one.well_formed and one.correct for one in decision.clip.candidates),
        "s_coh_best_candidate": decision.before,
        "s_coh_reassembled": decision.after,
        "second_judge": decision.second,
        "evidence": decision.evidence,
        "sentences_dropped": dict(sorted(decision.dropped.items())),
    }


def as_markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    scores, second, cold = report["s_coh"], report["second_judge"], report["cold_start"]
    lines = [
        "# Yield of rejection sampling",
        "",
        f"{report['kept']} of {report['clips']} clips came through ({report['yield']:.1%}).",
        "",
        "| what became of a clip | clips |",
        "|---|---|",
        *(f"| {_WORDS[outcome]} | {count} |" for outcome, count in report["outcomes"].items()),
        "",
        "| S_coh, 1 to 5 | best candidate | kept text |",
        "|---|---|---|",
        f"| all that are kept | {_number(scores['best_candidate'])} | {_number(scores['kept'])} |",
        f"| reassembled | {_number(scores['reassembled_before'])} | {_number(scores['reassembled_after'])} |",
    ]
    if second["after"] is not None:
        lines.append(f"| kept, by the second judge | {_number(second['before'])} | {_number(second['after'])} |")
    lines += [
        "",
        f"Reassembled texts cite {_number(report['evidence_covered'])} of the modalities that their clips have "
        "evidence for (mean share).",
        "",
        "| sentences of right candidates dropped because of | sentences |",
        "|---|---|",
        *(f"| {reason.replace('_', ' ')} | {count} |" for reason, count in report["sentences_dropped"].items()),
        "",
        "| emotion | clips | kept |",
        "|---|---|---|",
        *(f"| {name} | {row['clips']} | {row['kept']} |" for name, row in report["by_class"].items()),
        "",
    ]
    if cold is not None:
        lines += [
            f"Cold start: {cold['taken']} of {cold['wanted']} records wanted; {cold['judged']} of {cold['records']} "
            "were judged.",
            "",
        ]
    for example in report["examples"]:
        lines += [
            f"## {example['id']}: {example['truth']}",
            "",
            f"Best candidate ({_number(example['s_coh_best_candidate'])}): {example['best_candidate']}",
            "",
            f"Reassembled ({_number(example['s_coh_reassembled'])}): {example['reassembled']}",
            "",
        ]
    return "\n".join(lines)


def _example(decision: Decision) -> dict[str, Any]:
    return outcome_line(decision) | {
        "best_candidate": decision.best.explanation if decision.best else None,
        "reassembled": decision.reassembly.text if decision.reassembly else None,
    }


def _by_gain(decision: Decision) -> tuple[float, str]:
    return (decision.before or 0.0) - (decision.after or 0.0), decision.clip.id


def _covered(decision: Decision) -> float | None:
    if not decision.evidence or decision.reassembly is None:
        return None
    cited = {part for one in decision.reassembly.sentences for part in one.modalities}
    return len(cited & set(decision.evidence)) / len(decision.evidence)


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
