"""FG-CE-guided rejection sampling: from an RL model's candidates to the records of the RFT stage.

:mod:`candidates` reads what scripts/sample_candidates.py drew and says how varied it is; :mod:`judging` has texts
scored, or stops; :mod:`sentences` filters; :mod:`reassemble` puts the best sentences together; :mod:`selection` decides
what is kept; :mod:`dataset` makes records of it and adds cold-start data; :mod:`yield_report` says what became of every
clip. What the authors released does not contain this stage: order and thresholds are ours, and configs/caemer/rft.yaml
gives their reasons.
"""
