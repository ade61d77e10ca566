"""What verl imports through its entry point `verl.plugins`: our losses, estimators and trainers enter the registries of that process."""

import warnings

from .verl import register
from .verl_gigpo import register_trainers

try:
    register()
    register_trainers()
except Exception as error:  # noqa: BLE001 - verl hides what a plugin raises, so it is said here
    warnings.warn(f"gigpo_fast is not registered in verl: {error}", stacklevel=1)
    raise
