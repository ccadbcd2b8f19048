"""Evaluation of prediction files: recognition metrics, coherence through FG-CE, and the report."""
