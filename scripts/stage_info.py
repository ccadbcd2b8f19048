"""Prints what the report shows of a quickstart's stages beside their predictions: seconds and the trainer's log.

python scripts/stage_info.py runs/quickstart sft grpo1 grpo2 > stage_info.json
"""

import json
import sys
from pathlib import Path


def stage_info(run: Path, stage: str) -> dict:
    """Seconds that training took, and the trainer's logged figures by step."""
    state = json.loads((run / stage / "trainer_state.json").read_text(encoding="utf-8"))
    return {
        "seconds": float((run / ".done" / stage).read_text()),
        "steps": state["global_step"],
        "log_history": state["log_history"],
    }


def main() -> None:
    run, stages = Path(sys.argv[1]), sys.argv[2:]
    json.dump({stage: stage_info(run, stage) for stage in stages}, sys.stdout)


if __name__ == "__main__":
    main()
