"""Supervised fine-tuning of HumanOmni.

    python train_sft.py --config configs/toy/sft.yaml                        one process
    torchrun --nproc_per_node 8 train_sft.py --config configs/0.5B/sft.yaml  eight GPUs
    python train_sft.py --config configs/0.5B/sft.yaml --dry_run             what would happen

Every key of the YAML file is also a flag, and flags win. An interrupted run goes on from its last checkpoint;
with other settings that shape what is learnt, it is refused.
"""

from humanomni.training.run import parse_arguments
from humanomni.training.sft import SFTArguments, run_sft

if __name__ == "__main__":
    run_sft(parse_arguments(SFTArguments))
