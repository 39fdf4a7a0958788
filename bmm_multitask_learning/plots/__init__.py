"""Pictures of a fitted multitask model: pure functions on a matplotlib axis.

Every function takes arrays or tensors, draws on `ax` (a new figure where `ax` is None) and returns
the axis, so that titles, limits and labels stay in the caller's hands. Colours of text and
background follow the caller's matplotlib style; no global setting is changed. All functions stay
readable from one task to a thousand: labels are thinned, and what has many parts is rasterised.
Matplotlib is imported by the first picture, so that the package needs it for nothing else.

Where the legend stands above the axis, a title needs room: `ax.set_title("...", pad=30)`.
"""

from bmm_multitask_learning.plots.affinity import affinity
from bmm_multitask_learning.plots.convergence import bound
from bmm_multitask_learning.plots.estimates import forest, predictions
from bmm_multitask_learning.plots.mixing import mixing
from bmm_multitask_learning.plots.patterns import patterns
from bmm_multitask_learning.plots.quality import calibration, coverage, reliability
from bmm_multitask_learning.plots.relevance import relevance
from bmm_multitask_learning.plots.structure import relations, responsibilities
from bmm_multitask_learning.plots.tree import tree
from bmm_multitask_learning.plots.weights import shrinkage

__all__ = [
    "affinity",
    "bound",
    "calibration",
    "coverage",
    "forest",
    "mixing",
    "patterns",
    "predictions",
    "relations",
    "relevance",
    "reliability",
    "responsibilities",
    "shrinkage",
    "tree",
]
