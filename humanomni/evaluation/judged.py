"""Asks an FG-CE server about texts and keeps each answer on disk, so that a second evaluation asks nothing twice."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from tqdm import tqdm

from fgce.emotion import ConveyedEmotion
from fgce.schema import ExplanationScore, Identity, MissingReason
from humanomni.records import BadLine, JsonlWriter, read_jsonl

log = logging.getLogger(__name__)

_BATCH = 32
_NOBODY_THERE = {MissingReason.UNREACHABLE, MissingReason.REFUSED}

Question = TypeVar("Question")
Answer = TypeVar("Answer", ExplanationScore, ConveyedEmotion)


class JudgeChangedError(Exception):
    """The server's rubric, judge or way to ask it changed between two requests, so the answers do not compare."""


@dataclass(frozen=True)
class Reply(Generic[Answer]):
    """A server's answers, in the questions' order; `identity` is None where no server answered."""

    identity: Identity | None
    answers: list[Answer]


class Interview(Generic[Question, Answer]):
    """Puts questions to a server, each once.

    A kept answer is used where the server that answers now has the same identity, and where no server answers.
    Missing answers are not kept, nor are those that the judge owes a part of: they are asked for again.

    Args:
        ask: puts questions by their keys, which the answers have as ids; never raises for what the server does.
        greeting: a question that costs the judge nothing and shows who answers.
        kept: JSONL of kept answers, made or continued.
        answer_type: of the kept answers.

    Attributes:
        identity: of the answers; None while nobody has answered.
        failure: why no server answers, in words; None while one does.
    """

    def __init__(
        self,
        ask: Callable[[Mapping[str, Question]], Reply[Answer]],
        greeting: Question,
        kept: Path,
        answer_type: type[Answer],
    ) -> None:
        self._ask_server: Callable[[Mapping[str, Question]], Reply[Answer]] = ask
        self._answer_type: type[Answer] = answer_type
        self._kept: _KeptAnswers[Answer] = _KeptAnswers(kept, answer_type)
        self.failure: str | None = None
        self.identity: Identity | None = self._ask({"": greeting}).identity or self._kept.last_identity
        if self.failure and self.identity:
            log.warning("FG-CE: no server answers; taking what %s holds", kept)

    def answers(self, questions: Mapping[str, Question], name: str) -> dict[str, Answer]:
        """One answer a key. A judge that fails gives missing answers, never an error.

        Args:
            questions: by keys that are equal only where the questions are.
            name: shown while waiting.

        Raises:
            JudgeChangedError: the server's identity is not that of the first answer.
        """
        todo = [key for key in questions if self._kept.get(key, self.identity) is None]
        passing: dict[str, Answer] = {}
        with tqdm(total=len(todo), desc=f"FG-CE {name}", leave=False, disable=None) as progress:
            for start in range(0, len(todo), _BATCH):
                batch = {key: questions[key] for key in todo[start : start + _BATCH]}
                passing |= self._keep(self._ask(batch))
                progress.update(len(batch))
        return {key: self._kept.get(key, self.identity) or passing[key] for key in questions}

    def _ask(self, questions: Mapping[str, Question]) -> Reply[Answer]:
        """One request; none once the server is known to be gone, so that its absence costs one wait."""
        if self.failure is not None:
            gone = [self._answer_type.missing(key, MissingReason.UNREACHABLE, self.failure) for key in questions]
            return Reply(None, gone)
        reply = self._ask_server(questions)
        first = reply.answers[0]
        if reply.identity is None and first.reason in _NOBODY_THERE:
            self.failure = first.detail
        return reply

    def _keep(self, reply: Reply[Answer]) -> dict[str, Answer]:
        """Keeps what is answered for good and returns the rest, by key."""
        if reply.identity is not None:
            if self.identity not in (None, reply.identity):
                raise JudgeChangedError(
                    f"FG-CE changed during the evaluation, from {self.identity} to {reply.identity}; run it again"
                )
            self.identity = reply.identity
            self._kept.add([answer for answer in reply.answers if _is_final(answer)], reply.identity)
        return {answer.id: answer for answer in reply.answers if not _is_final(answer)}


class _KeptAnswers(Generic[Answer]):
    """The file: a line an answer, `{"key", "scorer", "score"}`."""

    def __init__(self, path: Path, answer_type: type[Answer]) -> None:
        self._path = path
        self._answers: dict[tuple[str, str], Answer] = {}
        self.last_identity: Identity | None = None
        JsonlWriter(path).close()  # makes the file, or drops the line that a killed evaluation was writing
        for line in read_jsonl(path, "skip"):
            if isinstance(line, BadLine):
                log.warning("%s; that explanation is judged again", line)
                continue
            self.last_identity = line.value["scorer"]
            answer = answer_type.model_validate(line.value["score"])
            if _is_final(answer):  # older versions kept what the judge had answered in part
                self._answers[line.value["key"], _hashable(self.last_identity)] = answer

    def get(self, key: str, identity: Identity | None) -> Answer | None:
        return self._answers.get((key, _hashable(identity)))

    def add(self, answers: Sequence[Answer], identity: Identity) -> None:
        with JsonlWriter(self._path) as writer:
            for answer in answers:
                self._answers[answer.id, _hashable(identity)] = answer
                writer.write({"key": answer.id, "scorer": identity, "score": answer.model_dump(mode="json")})


def _is_final(answer: Answer) -> bool:
    return answer.status == "ok" and not answer.unfinished


def _hashable(identity: Identity | None) -> str:
    return json.dumps(identity, sort_keys=True)
