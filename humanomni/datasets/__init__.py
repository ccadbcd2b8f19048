"""The data sets of the field in the layouts that users have on disk, made into the project's records."""

from humanomni.datasets.custom import CUSTOM, RECORDS
from humanomni.datasets.dfew import DFEW
from humanomni.datasets.emer import EMER, EMER_V1
from humanomni.datasets.mafw import MAFW, MAFW_COMPOUND
from humanomni.datasets.mer import MER2023, MER2024, MER2025
from humanomni.datasets.merr import MERR
from humanomni.datasets.ravdess import RAVDESS
from humanomni.datasets.source import Dataset

DATASETS: dict[str, Dataset] = {
    "mafw": MAFW,
    "mafw_compound": MAFW_COMPOUND,
    "dfew": DFEW,
    "ravdess": RAVDESS,
    "emer": EMER,
    "emer_v1": EMER_V1,
    "mer2023": MER2023,
    "mer2024": MER2024,
    "mer2025": MER2025,
    "merr": MERR,
    "records": RECORDS,
    "custom": CUSTOM,
}
