"""A local web page: drop a clip, get the answer, the explanation and the scores of its sentences.

    python scripts/demo.py --model_path runs/grpo2
    python scripts/demo.py --model_path runs/grpo2 --fgce_url http://127.0.0.1:8000    # another judge than the lexicon

It listens on loopback and sends a clip nowhere else; the clip is deleted when its answer is there.
"""

import argparse
import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

import uvicorn

from fgce.client import FgceClient
from fgce.config import FgceConfig
from fgce.emotion import EmotionReader, EmotionRequest, EmotionResponse
from fgce.schema import ScoreRequest, ScoreResponse
from fgce.service import make_scorer
from humanomni.evaluation.demo import Respond, create_app
from humanomni.loading import LoadError, LoadOptions, add_load_arguments
from humanomni.prompts import EMOTION_QUESTION
from humanomni.records import Record

log = logging.getLogger("demo")

_CLIP = "clip"


def main() -> None:
    """Command line entry point."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        respond = load_model(arguments)
    except LoadError as error:
        sys.exit(f"demo: {error}")
    judge = ServerJudge(arguments.fgce_url) if arguments.fgce_url else LexiconHere()
    settings = uvicorn.Config(
        create_app(respond, judge, str(arguments.model_path)), port=arguments.port, log_level="warning"
    )
    asyncio.run(_Server(settings).serve())


def load_model(arguments: argparse.Namespace) -> Respond:
    """The model as a function of a clip's path.

    Raises:
        LoadError: the model cannot be loaded as asked.
    """
    loading = LoadOptions.of(arguments, arguments.model_path).resolved()

    # Here, because a wrong path should not wait for torch.
    from humanomni.inference import Failure, Item, Predictor, pick_device

    predictor = Predictor(loading, max_new_tokens=arguments.max_new_tokens, device=arguments.device or pick_device())

    def respond(clip: Path) -> dict[str, Any] | str:
        record = Record(id=_CLIP, video=clip.name, question=EMOTION_QUESTION, target=None)
        [(_, outcome)] = predictor.predict([Item(1, record, clip)], num_workers=0)
        return outcome.detail if isinstance(outcome, Failure) else outcome

    return respond


class LexiconHere:
    """The embedded judge, in this process."""

    def __init__(self) -> None:
        self._scorer = make_scorer(FgceConfig())
        self._reader = EmotionReader(self._scorer.judge)

    def score(self, request: ScoreRequest) -> ScoreResponse:
        return asyncio.run(self._scorer.score(request))

    def name_emotions(self, request: EmotionRequest) -> EmotionResponse:
        return asyncio.run(self._reader.read(request))


class ServerJudge:
    """An FG-CE server's judge; where it does not answer, scores are missing."""

    def __init__(self, url: str) -> None:
        self._client = FgceClient(url)

    def score(self, request: ScoreRequest) -> ScoreResponse:
        return asyncio.run(self._client.score_request(request))

    def name_emotions(self, request: EmotionRequest) -> EmotionResponse:
        return self._client.name_emotions(request)


class _Server(uvicorn.Server):
    """Says where it listens once it does, whatever port it was given."""

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            log.info("open http://127.0.0.1:%d", self.servers[0].sockets[0].getsockname()[1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model_path", type=Path, required=True, help="native HumanOmni folder, or a LoRA adapter's")
    parser.add_argument("--fgce_url", help="FG-CE server (default: the lexicon judge in this process)")
    parser.add_argument("--port", type=int, default=7860, help="on loopback; 0 takes a free one (default %(default)s)")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="length of a response (default %(default)s)")
    add_load_arguments(parser)
    return parser


if __name__ == "__main__":
    main()
