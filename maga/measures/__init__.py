"""Measures of forgetting: importing this package registers all metrics (`maga.measures.contract.METRICS`)."""

from maga.measures import evaluation, attacks, residual, connectivity
