"""inference_batch.py with a predictor that answers at once without a model: all else is the real program.

FAKE_SECONDS is how long it takes for a record (0).
"""

import os
import time
from typing import Any

import inference_batch
from humanomni.prediction_shards import Shard
from humanomni.records import Record


def predict_share(*arguments: Any) -> None:
    """Takes the place of the function of that name; its last arguments are the records by line, and the shard."""
    records: dict[int, Record] = arguments[-2]
    shard: Shard = arguments[-1]
    for line, record in records.items():
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
        response = f"<think>Clip {record.id}. {'Her brows are lowered. ' * 20}</think>\n<answer>anger</answer>"
        answer = {"pred": "anger", "think_text": None, "raw_response": response}
        shard.add_prediction(line, {"id": record.id, "video": record.video, "gt": record.target, **answer})


if __name__ == "__main__":
    inference_batch.predict_share = predict_share
    inference_batch.main()
