"""Unlearning methods: importing this package registers all of them (`maga.methods.contract.METHODS`), those of other packages included."""

import warnings
from importlib.metadata import entry_points

from maga.methods.contract import METHODS
from maga.methods import maga, retraining, finetuning, relabelling, dampening, distillation, maga_soft, restart, relatives, features, tuning

tuning.add_tuned()
OURS = dict(METHODS)
for plugin in entry_points(group="maga.methods"):
    try:
        plugin.load()
    except Exception as e:  # another package's fault must not stop this one
        warnings.warn(f"The methods of {plugin.value} could not be loaded ({type(e).__name__}: {e}); repair or uninstall that package.", stacklevel=2)
    if taken := [name for name, method in OURS.items() if METHODS[name] is not method]:
        METHODS.update(OURS)
        warnings.warn(f"{plugin.value} has methods of our names ({', '.join(taken)}); ours are kept. Rename those.", stacklevel=2)
