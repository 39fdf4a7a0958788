"""How good predictions are, and how honest: over all rows, and task by task.

Arrays or tensors in, Python floats out. A target that is NaN was not observed and is ignored;
where nothing was observed the figure is NaN. What scikit-learn has is scikit-learn's.
"""

from bmm_multitask_learning.metrics.classification import (
    auc,
    brier,
    expected_calibration_error,
    quadratic_weighted_kappa,
)
from bmm_multitask_learning.metrics.regression import (
    crps,
    crps_samples,
    explained_variance,
    interval_coverage,
    interval_width,
    mean_log_predictive_density,
    rmse,
)
from bmm_multitask_learning.metrics.spans import (
    SpanF1,
    SpanScore,
    decode_tags,
    span_f1,
    spans,
)
from bmm_multitask_learning.metrics.tasks import ByTask, by_task

__all__ = [
    "ByTask",
    "SpanF1",
    "SpanScore",
    "auc",
    "brier",
    "by_task",
    "crps",
    "crps_samples",
    "decode_tags",
    "expected_calibration_error",
    "explained_variance",
    "interval_coverage",
    "interval_width",
    "mean_log_predictive_density",
    "quadratic_weighted_kappa",
    "rmse",
    "span_f1",
    "spans",
]
