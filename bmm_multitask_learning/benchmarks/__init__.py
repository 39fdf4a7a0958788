"""Protocols on real data and on planted truth, and the tables that they make.

`bmm-mtl benchmark` runs them; see `protocol.Protocol` for what one is made of.
"""

from .affinity import AFFINITY
from .landmine import LANDMINE
from .landmine_trees import LANDMINE_TREES
from .office import OFFICE
from .parkinsons import PARKINSONS
from .planted import PLANTED
from .protocol import Forecast, Metric, Problem, Protocol, Rows, Split
from .results import Results, measure
from .rotated_mnist import ROTATED_MNIST
from .sarcos import SARCOS
from .school import SCHOOL
from .sentiment import SENTIMENT
from .texts import TEXTS
from .unrelated import UNRELATED
from .yeast import YEAST

__all__ = [
    "AFFINITY",
    "LANDMINE",
    "LANDMINE_TREES",
    "OFFICE",
    "PARKINSONS",
    "PLANTED",
    "ROTATED_MNIST",
    "SARCOS",
    "SCHOOL",
    "SENTIMENT",
    "TEXTS",
    "UNRELATED",
    "YEAST",
    "Forecast",
    "Metric",
    "Problem",
    "Protocol",
    "Results",
    "Rows",
    "Split",
    "measure",
]
