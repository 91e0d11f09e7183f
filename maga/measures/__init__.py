"""Measures of forgetting: importing this package registers all metrics (`maga.measures.contract.METRICS`)."""

from maga.measures import evaluation, attacks, residual, connectivity
from maga.measures.contract import METRICS

OURS = frozenset(METRICS)  # names; a notebook that defines one of these anew shows ours at work
