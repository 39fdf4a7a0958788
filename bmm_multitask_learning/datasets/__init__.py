"""Real data sets with pinned origin and checksum, and synthetic ones with a known truth."""

from bmm_multitask_learning.datasets.clusters import ClusterTruth, make_clusters
from bmm_multitask_learning.datasets.entities import fetch_entities
from bmm_multitask_learning.datasets.exam import load_exam
from bmm_multitask_learning.datasets.landmine import fetch_landmine
from bmm_multitask_learning.datasets.mixing import MixingTruth, make_mixing
from bmm_multitask_learning.datasets.office_caltech import fetch_office_caltech10
from bmm_multitask_learning.datasets.parkinsons import fetch_parkinsons
from bmm_multitask_learning.datasets.reviews import fetch_reviews
from bmm_multitask_learning.datasets.rotated_mnist import fetch_rotated_mnist
from bmm_multitask_learning.datasets.sarcos import fetch_sarcos
from bmm_multitask_learning.datasets.school import fetch_school
from bmm_multitask_learning.datasets.sent_conv import fetch_sent_conv
from bmm_multitask_learning.datasets.sentiment import fetch_sentiment
from bmm_multitask_learning.datasets.sparse import SparseTruth, make_sparse
from bmm_multitask_learning.datasets.tagged import (
    TaggedSentences,
    align_tags,
    bio_tags,
    tag_targets,
)
from bmm_multitask_learning.datasets.texts import LabelledTexts
from bmm_multitask_learning.datasets.trec import fetch_trec
from bmm_multitask_learning.datasets.tree import TreeTruth, make_tree
from bmm_multitask_learning.datasets.yeast import fetch_yeast

__all__ = [
    "ClusterTruth",
    "LabelledTexts",
    "MixingTruth",
    "SparseTruth",
    "TaggedSentences",
    "TreeTruth",
    "align_tags",
    "bio_tags",
    "fetch_entities",
    "fetch_landmine",
    "fetch_office_caltech10",
    "fetch_parkinsons",
    "fetch_reviews",
    "fetch_rotated_mnist",
    "fetch_sarcos",
    "fetch_school",
    "fetch_sent_conv",
    "fetch_sentiment",
    "fetch_trec",
    "fetch_yeast",
    "load_exam",
    "make_clusters",
    "make_mixing",
    "make_sparse",
    "make_tree",
    "tag_targets",
]
