"""inference_batch.py with a predictor that answers at once without a model: all else is the real program.

FAKE_SECONDS is how long it takes for a record (0); every FAKE_FAILS-th record fails (none).
"""

import os
import time
from typing import Any

import inference_batch
from humanomni import prediction_run
from humanomni.prediction_shards import Shard
from humanomni.records import Record


def predict_share(records: dict[int, Record], shard: Shard, *_: Any) -> None:
    """Takes the place of the function of that name."""
    fails = int(os.environ.get("FAKE_FAILS", "0"))
    for line, record in records.items():
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
        if fails and line % fails == 0:
            shard.add_failure(line, record, "MediaError", f"{record.video}: no such file")
            continue
        response = f"<think>Clip {record.id}. {'Her brows are lowered. ' * 20}</think>\n<answer>anger</answer>"
        answer = {"pred": "anger", "think_text": None, "raw_response": response}
        shard.add_prediction(line, {"id": record.id, "video": record.video, "gt": record.target, **answer})


if __name__ == "__main__":
    prediction_run.predict_share = predict_share
    inference_batch.main()
