"""Rejection sampling: what is kept, what it reads like, what is said about the rest, and that nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from server_process import server_process

from fgce.aggregate import aggregate
from fgce.config import load_settings
from fgce.schema import ExplanationScore, Function, JudgeInfo, MissingReason, Modality, RubricInfo, SentenceScore
from humanomni.records import Record, read_records, resolve_video
from humanomni.rft import wording
from humanomni.rft.candidates import Candidate, SampledClip, candidates_summary, distinct_n, read_candidates
from humanomni.rft.judging import JudgeFailedError
from humanomni.rft.reassemble import reassemble
from humanomni.rft.selection import Decision, cap_classes, decide, drop_near_copies
from humanomni.rft.sentences import Sentence, evidence, filter_sentences
from humanomni.rft.settings import CandidateSettings, RftSettings

REPO = Path(__file__).parents[1]
SETTINGS = load_settings(RftSettings, REPO / "configs/caemer/rft.yaml")
QUESTION = "Which emotion is it?"

SMILE = "The mouth corners are raised in a smile and the eyes are bright."
VOICE = "The pitch is high and the speech is fast."
READING = "The smile and the high pitch suggest joy."
VAGUE = "The high pitch may suggest sadness."
WALL = "The wall in the background is blue."
HAPPY = "Overall, the face and the voice show that the person is happy."


def response(*sentences: str, answer: str = "happiness") -> str:
    return f"<think>{' '.join(sentences)}</think>\n<answer>{answer}</answer>"


@pytest.fixture(scope="module")
def judge_url() -> Iterator[str]:
    with server_process("--config", str(REPO / "configs/fgce/lexicon.yaml")) as (url, _):
        yield url


class Build:
    """scripts/build_rft.py on clips that the test makes up, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "rejection"

    def write(self, clips: dict[str, Sequence[str]], truth: str = "happiness") -> None:
        """Records and candidates: {clip id: responses}."""
        records, candidates = [], []
        for identity, responses in clips.items():
            turns = [{"from": "human", "value": f"<video>\n<audio>\n{QUESTION}"}, {"from": "gpt", "value": truth}]
            records.append({"id": identity, "video": f"clips/{identity}.mp4", "conversations": turns, "fold": 1})
            drawn = [{"temperature": 1.0, "raw_response": text} for text in responses]
            candidates.append({"id": identity, "video": "x", "gt": truth, "candidates": drawn})
        (self.folder / "data").mkdir(exist_ok=True)
        for name, rows in (("data/records.jsonl", records), ("candidates.jsonl", candidates)):
            (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(self, url: str, *flags: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            str(REPO / "scripts/build_rft.py"),
            "--config",
            str(REPO / "configs/caemer/rft.yaml"),
        ]
        command += ["--candidates", str(self.folder / "candidates.jsonl"), "--fgce_url", url, *flags]
        command += ["--records", str(self.folder / "data/records.jsonl"), "--output_dir", str(self.output)]
        return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def run(self, url: str, *flags: str) -> None:
        process = self.start(url, *flags)
        log = process.communicate(timeout=120)[1]
        assert process.returncode == 0, log

    def outputs(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.output.iterdir() if not path.name.startswith("scores")}

    def rows(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.output / name).read_text().splitlines()]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


def test_the_best_sentences_of_all_candidates_become_one_explanation(build: Build, judge_url: str) -> None:
    build.write(
        {
            "mended": [response(WALL, SMILE, VAGUE, HAPPY), response(VOICE, READING)],
            "perfect": [response(SMILE, VOICE, READING, HAPPY), response(WALL, HAPPY)],
            "wrong": [response(SMILE, READING, HAPPY, answer="anger")] * 2,
            "formless": ["happiness", "I think that she is happy."],
            "hopeless": [response(WALL, VAGUE)] * 2,
        }
    )
    build.run(judge_url)
    mended, perfect = build.rows("rft.jsonl")
    target = mended["conversations"][1]["value"]
    assert target == response(SMILE, f"Meanwhile, t{VOICE[1:]}", READING, HAPPY)
    assert perfect["conversations"][1]["value"] == response(SMILE, VOICE, READING, HAPPY)
    made = mended["provenance"]
    assert made["kind"] == "reassembled"
    assert [(one["candidate"], one["sentence"]) for one in made["sources"]] == [(0, 1), (1, 0), (1, 1), (0, 3)]
    assert made["s_coh"] > made["s_coh_best_candidate"] + SETTINGS.min_gain
    assert made["judge"]["backend"] == "lexicon"
    assert len(made["rubric"]["sha256"]) == 64
    assert perfect["provenance"]["kind"] == "candidate"
    outcomes = {row["id"]: row["outcome"] for row in build.rows("outcomes.jsonl")}
    assert outcomes == {
        "mended": "reassembled",
        "perfect": "candidate",
        "wrong": "no_candidate_right",
        "formless": "no_candidate_of_the_format",
        "hopeless": "chain_incomplete",
    }
    report = json.loads((build.output / "yield.json").read_text())
    assert (report["clips"], report["kept"], report["yield"]) == (5, 2, 0.4)
    assert report["s_coh"]["reassembled_after"] > report["s_coh"]["reassembled_before"]
    assert report["sentences_dropped"]["low_score"] >= 3
    text = (build.output / "yield.md").read_text()
    assert "2 of 5 clips came through (40.0%)" in text
    assert SMILE in text

    # The records are what the SFT stage reads, with clips that are found from where the file lies.
    (first, _) = [one for one in read_records(build.output / "rft.jsonl") if isinstance(one, Record)]
    clip = resolve_video(first.video, build.output / "rft.jsonl")
    assert clip.resolve() == build.folder / "data/clips/mended.mp4"
    assert (first.id, first.label, first.extra["fold"]) == ("mended#rft", "happiness", 1)


def test_killed_at_any_point_and_continued_it_gives_the_same_bytes(build: Build, judge_url: str) -> None:
    numbers = range(120)
    build.write({f"clip{n}": [response(SMILE, f"Frame {n}.", VAGUE, HAPPY), response(VOICE, READING)] for n in numbers})
    build.run(judge_url)
    straight = build.outputs()
    build.run(judge_url)
    assert build.outputs() == straight
    for name in (*straight, "scores.jsonl"):
        (build.output / name).unlink()
    for lines in (10, 150):
        process = build.start(judge_url)
        while process.poll() is None and count_lines(build.output / "scores.jsonl") < lines:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    build.run(judge_url)
    assert build.outputs() == straight


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_dead_judge_is_an_error_with_a_mend_and_no_data(build: Build) -> None:
    build.write({"a": [response(SMILE, READING, HAPPY)]})
    process = build.start("http://127.0.0.1:9")
    log = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "1 of 1 explanations have no score" in log
    assert "run the same command" in log
    assert not (build.output / "rft.jsonl").exists()


def test_cold_start_records_join_where_the_judge_finds_them_coherent(build: Build, judge_url: str) -> None:
    build.write(
        {f"clip{n}": [response(SMILE, f"Frame {n}.", VAGUE, HAPPY), response(VOICE, READING)] for n in range(8)}
    )
    turns = [{"from": "human", "value": f"<video>\n{QUESTION}"}, {"from": "gpt", "value": ""}]
    texts = [response(SMILE, VOICE, READING, HAPPY), response(WALL, VAGUE)]
    rows = [
        {"id": f"cold{n}", "video": f"{n}.mp4", "conversations": [turns[0], turns[1] | {"value": texts[n % 2]}]}
        for n in range(10)
    ]
    cold = build.folder / "data/sft.jsonl"
    cold.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build.run(judge_url, "--cold_start", str(cold), "--set", "max_near_copies=8")
    kinds = [(row["provenance"]["stage"], row["conversations"][1]["value"]) for row in build.rows("rft.jsonl")]
    joined = [target for stage, target in kinds if stage == "cold_start"]
    assert joined == [texts[0]] * 2  # a fifth of ten
    assert json.loads((build.output / "yield.json").read_text())["cold_start"]["taken"] == 2


def test_parts_of_one_video_are_kept_apart_and_stay_parts(build: Build, judge_url: str) -> None:
    """Two records of one video without ids, and a cold start of a third part: SFT must see the parts, not the whole."""

    def part(target: str, **keys: Any) -> dict[str, Any]:
        turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": target}]
        return {"video": "film.mp4", "conversations": turns, **keys}

    texts = [response(SMILE, VOICE, READING, HAPPY), response(SMILE, READING, HAPPY)]
    drawn = [
        {"id": identity, "gt": "happiness", "candidates": [{"temperature": 1.0, "raw_response": text}]}
        for identity, text in zip(("film.mp4", "film.mp4#2"), texts, strict=True)
    ]
    files = {
        "candidates.jsonl": drawn,
        "data/records.jsonl": [part("happiness", end=4.5), part("happiness", start=10, end=14)],
        "data/sft.jsonl": [part(texts[0], start=20)],
    }
    (build.folder / "data").mkdir()
    for name, rows in files.items():
        (build.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    build.run(judge_url, "--cold_start", str(build.folder / "data/sft.jsonl"), "--set", "cold_start_share=0.4")
    made = [one for one in read_records(build.output / "rft.jsonl") if isinstance(one, Record)]
    assert [(one.id, one.start, one.end, one.target) for one in made] == [
        ("film.mp4#rft", None, 4.5, texts[0]),
        ("film.mp4#2#rft", 10, 14, texts[1]),
        ("film.mp4#cold", 20, None, texts[0]),
    ]


def test_candidates_of_other_records_are_refused(build: Build) -> None:
    build.write({"a": [response(SMILE)]})
    (build.folder / "data/records.jsonl").write_text("")
    log = build.start("http://127.0.0.1:9").communicate(timeout=60)[1]
    assert "give --records the file that the candidates were sampled for" in log


def test_the_shipped_settings_of_sampling_are_valid() -> None:
    settings = load_settings(CandidateSettings, REPO / "configs/caemer/candidates.yaml", ["n=4"])
    assert (settings.n, settings.temperatures) == (4, (0.7, 1.0))


def test_an_unknown_setting_is_named(build: Build) -> None:
    build.write({"a": [response(SMILE)]})
    log = build.start("http://127.0.0.1:9", "--set", "min_score=3").communicate(timeout=60)[1]
    assert "min_score" in log


# Below: the parts, with scores that the tests dictate.

EXTRACTION: Function = "information extraction"
ANALYSIS: Function = "information analysis"


def scored(text: str, function: Function, modality: Modality = "visual", score: int | None = 5) -> SentenceScore:
    return SentenceScore(text=text, status="ok", function=function, modality=modality, score=score, weight=1.0)


def candidate(index: int = 0, text: str = "", answer: str = "happiness") -> Candidate:
    return Candidate(index, 1.0, response(text, answer=answer), text, True, answer == "happiness")


def explained(*sentences: SentenceScore, index: int = 0) -> tuple[Candidate, ExplanationScore]:
    return candidate(index), ExplanationScore(id="", status="ok", score=4.0, sentences=list(sentences))


def texts_of(sentences: Sequence[Sentence]) -> list[str]:
    return [one.text for one in sentences]


def test_the_filter_says_why_a_sentence_falls() -> None:
    pairs = [
        explained(
            scored("He smiles widely.", EXTRACTION),
            scored("His eyes shine.", EXTRACTION),
            scored("Hm.", "others", score=None),
            scored("There is a lamp.", EXTRACTION, score=1),
            scored("The tone is warm.", EXTRACTION, "audio"),
            scored("It shows his joy.", ANALYSIS),
            scored("These cues show joy.", ANALYSIS),
            scored("The face and the face and the eyes are bright.", EXTRACTION),
            scored("The mouth isthink>.", EXTRACTION),
        ),
        explained(scored("She smiles a little.", EXTRACTION), scored("He smiles so widely.", EXTRACTION), index=1),
    ]
    kept, dropped = filter_sentences(pairs, has_audio=False, settings=SETTINGS)
    assert texts_of(kept) == ["He smiles widely.", "His eyes shine.", "These cues show joy."]
    assert dropped == {
        "others": 1,
        "low_score": 1,
        "cites_sound_of_a_silent_clip": 1,
        "points_nowhere": 1,
        "speaks_of_another_person": 1,
        "broken": 2,
        "near_duplicate": 1,
    }


def test_of_equal_scores_the_sentence_that_more_candidates_hold_comes_first() -> None:
    often, once = scored("The brows are lowered.", EXTRACTION), scored("The lips are pressed.", EXTRACTION)
    pairs = [explained(once, index=0), explained(often, index=1), explained(often, index=2)]
    assert texts_of(filter_sentences(pairs, True, SETTINGS)[0]) == [often.text, once.text]


def test_a_modality_that_one_candidate_of_many_cites_is_no_evidence() -> None:
    seen, heard = scored("The mouth smiles.", EXTRACTION), scored("The laugh is loud.", EXTRACTION, "audio")
    pairs = [explained(seen, index=index) for index in range(7)]
    for more, expected in (([explained(heard, index=7)], {"visual"}), ([explained(heard)] * 3, {"visual", "audio"})):
        kept, _ = filter_sentences(pairs + more, True, SETTINGS)
        assert evidence(pairs + more, kept, SETTINGS.min_agreement) == expected


def text_of(*sentences: SentenceScore, **changes: Any) -> str | None:
    kept, _ = filter_sentences([explained(*sentences)], True, SETTINGS)
    result = reassemble(kept, {"visual", "audio"}, SETTINGS.model_copy(update=changes))
    return result and result.text


def test_a_reassembled_text_reads_in_order_with_its_connectives() -> None:
    assert (
        text_of(
            scored("The person is happy.", "conclusion", "audio-visual"),
            scored("Moreover, the bright eyes show joy", ANALYSIS),
            scored("Furthermore, the laugh is loud.", EXTRACTION, "audio", 4),
            scored("Her mouth is open in a smile.", EXTRACTION),
        )
        == "The person's mouth is open in a smile. Meanwhile, the laugh is loud. The bright eyes show joy. "
        "Overall, the person is happy."
    )


def test_without_a_link_of_the_chain_there_is_no_text() -> None:
    assert text_of(scored("The mouth smiles.", EXTRACTION), scored("She is happy.", "conclusion")) is None


def test_extractions_cover_the_evidence_before_they_repeat_a_modality() -> None:
    text = text_of(
        scored("The mouth smiles.", EXTRACTION),
        scored("The eyes shine.", EXTRACTION),
        scored("The laugh is loud.", EXTRACTION, "audio", 4),
        scored("Smile and laugh show joy.", ANALYSIS, "audio-visual"),
        scored("She is happy.", "conclusion"),
        max_extractions=2,
    )
    assert text is not None
    assert "laugh is loud" in text
    assert "eyes" not in text


def test_a_conclusion_does_not_sum_up_a_voice_of_which_nothing_was_said() -> None:
    both = scored("Overall, the face and the voice show joy.", "conclusion", "audio-visual")
    face = scored("Overall, the emotion in the face is joy.", "conclusion", "visual", 4)
    chain = (scored("The mouth smiles.", EXTRACTION), scored("The smile shows joy.", ANALYSIS))
    heard = scored("The laugh is loud.", EXTRACTION, "audio")
    assert str(text_of(*chain, both, face)).endswith(face.text)
    assert str(text_of(*chain, heard, both, face)).endswith(both.text)
    assert str(text_of(*chain, both)).endswith(both.text)


@pytest.mark.parametrize(
    ("text", "function", "expected"),
    [
        ("This suggests fear.", ANALYSIS, True),
        ("However, it suggests fear.", ANALYSIS, True),
        ("These subtle cues suggest fear.", ANALYSIS, False),
        ("These cues are clear.", EXTRACTION, True),
        ("It is clear that the voice trembles.", EXTRACTION, False),
        ("This person trembles.", EXTRACTION, False),
        ("Their eyes are wide.", EXTRACTION, True),
        ("The eyes are wide.", EXTRACTION, False),
    ],
)
def test_words_that_point_nowhere(text: str, function: Function, expected: bool) -> None:
    assert wording.points_nowhere(text, function) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Besides the smile, nothing moves.", "Besides the smile, nothing moves."),
        ("Next to him stands a man.", "Next to him stands a man."),
        ("And the voice breaks.", "the voice breaks."),
    ],
)
def test_only_connectives_are_taken_off(text: str, expected: str) -> None:
    assert wording.without_connective(text) == expected


class Judge:
    """A judge whose score of a text the test knows."""

    name = "test"
    identity = {"judge": JudgeInfo(backend="x", model="x", revision="x"), "rubric": RubricInfo(version="", sha256="")}

    def __init__(self, value: Callable[[str], float], functions: dict[str, Function] | None = None) -> None:
        self.value = value
        self.functions = functions or {}

    def score(self, texts: Sequence[tuple[str, str]]) -> list[ExplanationScore]:
        return [
            ExplanationScore(
                id="",
                status="ok",
                score=self.value(explanation),
                sentences=[
                    scored(f"{part}.", self.functions.get(part[0], EXTRACTION)) for part in explanation.split(". ")
                ],
            )
            for explanation, _ in texts
        ]


CHAIN: dict[str, Function] = {"A": ANALYSIS, "C": "conclusion", "O": "conclusion"}
CLIP = SampledClip("clip", "happiness", (candidate(0, "Eyes shine. A smile shows joy"), candidate(1, "Clearly joy")))


@pytest.mark.parametrize(
    ("after", "outcome"), [(4.5, "reassembled"), (4.02, "no_gain"), (3.9, "below_threshold"), (4.0, "no_gain")]
)
def test_a_reassembly_must_beat_the_best_candidate_and_the_threshold(after: float, outcome: str) -> None:
    judge = Judge(lambda text: after if "Overall" in text else 4.0, CHAIN)
    (decision,) = decide([CLIP], frozenset(), judge, None, SETTINGS)  # type: ignore[arg-type]
    assert decision.outcome == outcome


@pytest.mark.parametrize(("second", "outcome"), [(3.8, "reassembled"), (3.7, "second_judge")])
def test_a_second_judge_guards_against_what_only_pleases_the_first(second: float, outcome: str) -> None:
    judge = Judge(lambda text: 5.0 if "Overall" in text else 3.0, CHAIN)
    other = Judge(lambda text: second if "Overall" in text else 4.0, CHAIN)
    (decision,) = decide([CLIP], frozenset(), judge, other, SETTINGS)  # type: ignore[arg-type]
    assert decision.outcome == outcome


def test_without_reassembly_the_best_candidate_is_kept_as_it_stands() -> None:
    settings = SETTINGS.model_copy(update={"reassemble": False})
    judge = Judge(lambda text: 4.5 if "Eyes" in text else 4.0, CHAIN)
    (decision,) = decide([CLIP], frozenset(), judge, None, settings)  # type: ignore[arg-type]
    assert (decision.outcome, decision.text) == ("candidate", "Eyes shine. A smile shows joy")


def kept(identity: str, text: str, score: float = 4.5, truth: str = "happiness") -> Decision:
    clip = SampledClip(identity, truth, (candidate(0, text),))
    return Decision(clip, "candidate", {}, clip.candidates[0], score)


def test_copies_over_clips_are_capped_and_the_best_stay() -> None:
    copies = [
        kept(str(n), "The mouth smiles and the eyes shine with joy and the voice sings", n / 10) for n in range(6)
    ]
    other = kept("other", "The brows are lowered")
    left = drop_near_copies([*copies, other], SETTINGS)
    assert [one.clip.id for one in left if one.kept] == ["3", "4", "5", "other"]
    assert {one.outcome for one in left if not one.kept} == {"near_copy"}


def test_frequent_classes_are_capped_at_twice_the_median() -> None:
    sizes = {"happiness": 9, "anger": 2, "fear": 2}
    decisions = [kept(f"{truth}{n}", "", n / 10, truth) for truth, size in sizes.items() for n in range(size)]
    left = [one.clip.truth for one in cap_classes(decisions, SETTINGS) if one.kept]
    assert {truth: left.count(truth) for truth in sizes} == {"happiness": 4, "anger": 2, "fear": 2}


def test_a_judge_that_fails_on_most_texts_is_an_error_whatever_the_reason(tmp_path: Path) -> None:
    from humanomni.rft.judging import StrictJudge

    class Scorer:
        identity = None

        def score(self, predictions: Sequence[Any], name: str) -> list[ExplanationScore]:
            return [ExplanationScore.missing("", MissingReason.UNPARSEABLE, "gibberish") for _ in predictions]

    with pytest.raises(JudgeFailedError, match="2 of 2 explanations have no score"):
        StrictJudge(Scorer(), "x").score([("a", "fear"), ("b", "fear")])  # type: ignore[arg-type]


def test_a_judge_that_owes_a_sentence_is_an_error_and_a_sentence_too_long_is_not() -> None:
    from humanomni.rft.judging import StrictJudge

    def sentence(reason: MissingReason, detail: str) -> SentenceScore:
        return SentenceScore(text="x", status="missing", reason=reason, detail=detail)

    class Scorer:
        identity = None

        def __init__(self, missing: SentenceScore) -> None:
            self.scores = [aggregate("", [scored("She is happy.", "conclusion"), missing])]

        def score(self, predictions: Sequence[Any], name: str) -> list[ExplanationScore]:
            return self.scores

    gone = Scorer(sentence(MissingReason.TIMEOUT, "no answer within 100 s"))
    assert gone.scores[0].status == "ok"
    with pytest.raises(JudgeFailedError, match="1 of 1 explanations .*1 timeout; for example: no answer within 100 s"):
        StrictJudge(gone, "x").score([("a", "fear")])  # type: ignore[arg-type]
    for reason in (MissingReason.TOO_LARGE, MissingReason.UNPARSEABLE):
        there = Scorer(sentence(reason, "of no use"))
        assert StrictJudge(there, "x").score([("a", "fear")]) == there.scores  # type: ignore[arg-type]


def test_distinct_n_is_distinct_n_grams_over_all() -> None:
    assert distinct_n(["a b a b", "A b"], 1) == pytest.approx(2 / 6)
    assert distinct_n(["a b a b", "A b"], 2) == pytest.approx(2 / 4)
    assert distinct_n([""], 1) == 0.0


def test_the_summary_tells_right_from_varied(tmp_path: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    texts = [response(SMILE, HAPPY), response(SMILE, HAPPY, answer="anger"), "no format"]
    drawn = [{"temperature": t, "raw_response": text} for t, text in zip((0.5, 1.0, 0.5), texts, strict=True)]
    path.write_text(json.dumps({"id": "a", "gt": "happiness", "candidates": drawn}) + "\n")
    summary = candidates_summary(read_candidates(path))
    assert (summary["candidates"], summary["clips_with_a_right_candidate"]) == (3, 1)
    assert summary["correct"] == pytest.approx(1 / 3)
    assert summary["by_temperature"]["0.5"]["well_formed"] == 0.5
    assert 0 < summary["distinct_2"] < 1
