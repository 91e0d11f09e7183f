"""Unlearning methods: importing this package registers all of them (`maga.methods.contract.METHODS`)."""

from maga.methods import maga, retraining, finetuning, relabelling, dampening, distillation, maga_soft, restart, tuning

tuning.add_tuned()
