"""GRPO of HumanOmni with format, accuracy and coherence rewards.

    python -m fgce serve --config configs/fgce/lexicon.yaml --port 8000       the judge, for phase 2
    python train_grpo.py --config configs/toy/grpo2.yaml --fgce_url http://127.0.0.1:8000
    torchrun --nproc_per_node 8 train_grpo.py --config configs/0.5B/grpo1.yaml
    python train_grpo.py --config configs/0.5B/grpo1.yaml --dry_run           what would happen

Every key of the YAML file is also a flag, and flags win. An interrupted run goes on from its last checkpoint;
with other settings that shape what is learnt, it is refused.
"""

from humanomni.training.grpo import GRPOArguments, run_grpo
from humanomni.training.run import parse_arguments

if __name__ == "__main__":
    run_grpo(parse_arguments(GRPOArguments))
