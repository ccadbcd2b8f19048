"""Training: supervised fine-tuning and GRPO with accuracy, format and coherence rewards."""
