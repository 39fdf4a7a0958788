"""Real data sets with pinned origin and checksum, and synthetic ones with a known truth."""

from bmm_multitask_learning.datasets.clusters import ClusterTruth, make_clusters
from bmm_multitask_learning.datasets.exam import load_exam
from bmm_multitask_learning.datasets.landmine import fetch_landmine
from bmm_multitask_learning.datasets.mixing import MixingTruth, make_mixing
from bmm_multitask_learning.datasets.office_caltech import fetch_office_caltech10
from bmm_multitask_learning.datasets.parkinsons import fetch_parkinsons
from bmm_multitask_learning.datasets.rotated_mnist import fetch_rotated_mnist
from bmm_multitask_learning.datasets.sarcos import fetch_sarcos
from bmm_multitask_learning.datasets.school import fetch_school
from bmm_multitask_learning.datasets.sentiment import fetch_sentiment
from bmm_multitask_learning.datasets.sparse import SparseTruth, make_sparse
from bmm_multitask_learning.datasets.tree import TreeTruth, make_tree
from bmm_multitask_learning.datasets.yeast import fetch_yeast

__all__ = [
    "ClusterTruth",
    "MixingTruth",
    "SparseTruth",
    "TreeTruth",
    "fetch_landmine",
    "fetch_office_caltech10",
    "fetch_parkinsons",
    "fetch_rotated_mnist",
    "fetch_sarcos",
    "fetch_school",
    "fetch_sentiment",
    "fetch_yeast",
    "load_exam",
    "make_clusters",
    "make_mixing",
    "make_sparse",
    "make_tree",
]
