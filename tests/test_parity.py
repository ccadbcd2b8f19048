"""The authors' numbers: a legacy checkpoint, converted, must compute what their code computed.

Golden data: tests/data/golden (synthetic inputs, units) and, where it lies beside the checkout, ../shared/golden (real
clips, SFT, GRPO). Both go through scripts/check_parity.py, whose tolerances are those that the data's authors suggest.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).parents[1]
GOLDEN = REPO / "tests/data/golden"


def check_parity(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPO / "scripts/check_parity.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)


def rows(table: str) -> dict[str, str]:
    """Result of each quantity in a printed table."""
    return dict(re.findall(r"^(.+?)  .*? (pass|FAIL|not checked)\b", table, re.MULTILINE))


def test_the_numbers_that_come_with_the_repository() -> None:
    answer = check_parity(GOLDEN)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    table = rows(answer.stdout)
    for case in ("s0", "s1", "s2"):
        for quantity in ("prompt ids", "gate_probs", "fused_tokens", "logits_last4", "greedy ids"):
            assert table[f"small-A synthetic {case} {quantity}"] == "pass"
    assert table["small-A units frame sampling"] == "pass"
    assert table["small-A units pixels of img5, squash"] == "pass"


def test_wrong_numbers_and_missing_ones_fail(tmp_path: Path) -> None:
    root = Path(shutil.copytree(GOLDEN, tmp_path / "golden"))
    numbers = root / "golden/small-A/synthetic.json"
    content = json.loads(numbers.read_text())
    content["cases"][1]["greedy_ids"][3] += 1
    numbers.write_text(json.dumps(content))
    with np.load(numbers.with_suffix(".npz")) as stored:
        arrays = dict(stored)
    arrays["s0.fused_tokens"][5, 3] += 1e-2
    np.savez(numbers.with_suffix(".npz"), **arrays)

    answer = check_parity(root)
    assert answer.returncode == 1
    failed = {quantity for quantity, result in rows(answer.stdout).items() if result == "FAIL"}
    assert failed == {"small-A synthetic s0 fused_tokens", "small-A synthetic s1 greedy ids"}

    shutil.rmtree(root / "golden/small-A")
    shutil.rmtree(root / "checkpoints")
    assert check_parity(root).returncode == 1, "nothing could be compared"


@pytest.mark.slow
def test_the_whole_golden_data(shared_dir: Path) -> None:
    """Slow: 180 comparisons, among them the gradients of SFT and GRPO, take a minute."""
    answer = check_parity(shared_dir / "golden", "--clips", shared_dir / "clips")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    table = rows(answer.stdout)
    for quantity in ("clip_03 infer logits_last16", "greedy ids of row 1", "gradient norm", "GRPO loss"):
        assert any(quantity in row and result == "pass" for row, result in table.items()), quantity
