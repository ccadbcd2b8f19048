"""HumanOmni for explainable emotion recognition: model, media, prompts, training, inference and evaluation.

Importing :mod:`humanomni.modeling` or :mod:`humanomni.processing` registers the classes with transformers' ``Auto*``.
"""

__version__ = "0.1.0"
