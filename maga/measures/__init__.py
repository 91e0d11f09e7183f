"""Measures of forgetting: importing this package registers all metrics (`maga.measures.contract.METRICS`)."""

from maga.measures import evaluation, attacks, residual, connectivity
from maga.measures.contract import METRICS

OURS = dict(METRICS)  # another metric of one of these names is the user's, too
