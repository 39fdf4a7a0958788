"""Real data sets with pinned origin and checksum, and synthetic ones with a known truth."""

from bmm_multitask_learning.datasets.clusters import ClusterTruth, make_clusters
from bmm_multitask_learning.datasets.exam import load_exam
from bmm_multitask_learning.datasets.landmine import fetch_landmine
from bmm_multitask_learning.datasets.school import fetch_school
from bmm_multitask_learning.datasets.sentiment import fetch_sentiment

__all__ = [
    "ClusterTruth",
    "fetch_landmine",
    "fetch_school",
    "fetch_sentiment",
    "load_exam",
    "make_clusters",
]
