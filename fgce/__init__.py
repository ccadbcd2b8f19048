"""FG-CE: the Fine-Grained Coherence Evaluator of explanations in emotion recognition.

Paper: "Evaluating and Improving Explanation Coherence for Multimodal Emotion Recognition", ICME 2026.
"""
