"""The examples of CONTRIBUTING.md do what it says of them."""

import json
import re
from pathlib import Path

from humanomni.prompts import strip_media_tags
from humanomni.records import Line, Record
from humanomni.training import rewards


def example(repo: Path, language: str) -> str:
    (text,) = re.findall(
        rf"^```{language}\n(.*?)^```", (repo / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL
    )
    return text


def test_the_reward_gives_a_number_a_completion(repo: Path):
    names = dict(vars(rewards))
    exec(example(repo, "python"), names)
    texts = [f"<think>{'very ' * words}sad.</think>\n<answer>sadness</answer>" for words in (5, 60)]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    assert names["brevity"](completions, solution=["sadness", "sadness"]) == [1, 0]


def test_the_record_is_one(repo: Path):
    record = Record.from_json(Line(Path("yours.jsonl"), 1, json.loads(example(repo, "json"))))
    assert (record.video, record.label) == ("clips/03747.mp4", "anger")
    assert strip_media_tags(record.question).startswith("As an emotional recognition expert")
