"""Figures that others have published on the same data sets, to be read beside a run's own."""

# Label set -> model -> (WAR, UAR) in percent, as the authors of R1-Omni and HumanOmni state them. 0.5B models
# unless named otherwise; RAVDESS is zero-shot.
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "dfew": {
        "HumanOmni-0.5B": (22.64, 19.44),
        "EMER-SFT": (38.66, 35.31),
        "MAFW-DFEW-SFT": (60.23, 44.39),
        "R1-Omni": (65.83, 56.27),
        "HumanOmni-7B": (82.46, 74.86),
    },
    "mafw": {
        "HumanOmni-0.5B": (20.18, 13.52),
        "EMER-SFT": (38.39, 28.02),
        "MAFW-DFEW-SFT": (50.44, 30.39),
        "R1-Omni": (57.68, 40.04),
        "HumanOmni-7B": (68.40, 52.94),
    },
    "ravdess": {
        "HumanOmni-0.5B": (7.33, 9.38),
        "EMER-SFT": (29.00, 27.19),
        "MAFW-DFEW-SFT": (29.33, 30.75),
        "R1-Omni": (43.00, 44.69),
    },
}

CAVEAT = (
    "Published figures are for orientation only: their authors do not state the folds behind them, and another fold "
    "or another treatment of unparseable answers moves WAR and UAR by points."
)
