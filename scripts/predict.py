"""Asks a model about one clip: its answer, its explanation and, with --fgce, how each sentence of it is judged.

    python scripts/predict.py clip.mp4 --model models/R1-Omni-0.5B
    python scripts/predict.py clip.mp4 --model runs/grpo2 --fgce http://127.0.0.1:8000 --start 2.5 --end 6

CLIP is a video, an image, a sound file or a folder of frames; unless --modality says otherwise, the model is shown all
that there is. An answer whose score is missing is still an answer: the exit status is 0 and the reason is printed.
"""

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from fgce.client import FgceClient
from fgce.schema import ExplanationScore, ScoreItem, ScoreResponse
from humanomni.labels import normalise_label
from humanomni.loading import LoadError, LoadOptions, add_load_arguments
from humanomni.media import MediaError, kind_of
from humanomni.prompts import EMOTION_QUESTION, MODALITIES
from humanomni.records import Record

_MODALITY_OF_KIND = {"video": "video_audio", "image": "image", "audio": "audio"}


def main() -> None:
    """Command line entry point."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        predict(arguments)
    except (LoadError, MediaError) as error:
        sys.exit(f"predict: {error}")


def predict(arguments: argparse.Namespace) -> None:
    """Prints what the model says of the clip.

    Raises:
        LoadError: the model cannot be loaded as asked.
        MediaError: the clip cannot be read.
    """
    modality = arguments.modality or _MODALITY_OF_KIND[kind_of(arguments.clip)]
    loading = LoadOptions.of(arguments, arguments.model).resolved()

    # Here, because a wrong path should not wait for torch.
    from transformers.utils.logging import disable_progress_bar

    from humanomni.inference import Failure, Item, Predictor, pick_device

    disable_progress_bar()
    predictor = Predictor(
        loading, modality, max_new_tokens=arguments.max_new_tokens, device=arguments.device or pick_device()
    )
    clip = str(arguments.clip)
    record = Record(clip, clip, arguments.question, None, start=arguments.start, end=arguments.end)
    [(_, outcome)] = predictor.predict([Item(1, record, arguments.clip)], num_workers=0)
    if isinstance(outcome, Failure):
        sys.exit(f"predict: {outcome.detail}")

    answer, explanation = outcome["pred"], outcome["think_text"]
    sys.stdout.write(f"answer: {answer}\nexplanation: {explanation}\n")
    if not outcome.get("has_audio", True):
        sys.stdout.write("The clip has no sound: the model heard silence.\n")
    if answer is None or explanation is None:
        sys.stdout.write(f"The response is not of the form that was asked for: {outcome['raw_response']!r}\n")
    if arguments.fgce and answer and explanation:
        item = ScoreItem(id=clip, explanation=explanation, predicted_emotion=normalise_label(answer) or answer)
        response = FgceClient(arguments.fgce).score_sync([item])
        sys.stdout.write("\n".join(_judgement(response)) + "\n")


def _judgement(response: ScoreResponse) -> Iterator[str]:
    [result] = response.results
    yield f"S_coh: {_coherence(result)}"
    for sentence in result.sentences:
        if sentence.status == "missing":
            verdict = f"missing: {sentence.reason}"
        else:
            parts = (sentence.function, sentence.modality, None if sentence.score is None else str(sentence.score))
            verdict = ", ".join(part for part in parts if part)
        yield f"  [{verdict}] {sentence.text}"
    if response.judge and response.rubric:
        yield f"judged by {response.judge.backend} {response.judge.model}, rubric {response.rubric.version}"


def _coherence(result: ExplanationScore) -> str:
    if result.status == "missing":
        return f"missing ({result.reason}: {result.detail})"
    if result.score is None:
        return "undefined (no sentence carries evidence)"
    return f"{result.score:.2f} of 1 to 5 (unweighted {result.unweighted:.2f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("clip", type=Path, metavar="CLIP", help="video, image, sound file or folder of frames")
    add("--model", type=Path, required=True, help="native HumanOmni folder, or a LoRA adapter's")
    add("--question", default=EMOTION_QUESTION, help="what to ask (the question of the published checkpoints)")
    add("--modality", choices=tuple(MODALITIES), help="what the model is shown (all that the clip holds)")
    add("--start", type=float, help="second at which the part that is meant begins")
    add("--end", type=float, help="second at which it ends")
    add("--max_new_tokens", type=int, default=1024, help="length of the response (%(default)s)")
    add("--fgce", metavar="URL", help="FG-CE server that judges the explanation")
    add_load_arguments(parser)
    return parser


if __name__ == "__main__":
    main()
