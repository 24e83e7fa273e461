"""What `garrison serve` can be told.

In reading order: `sources` merges file, environment and flags; `tree` holds all settings and what must fit
together; then one module for each area, and `types`, how the text of a single value reads.
"""

from garrison.process.settings.sources import (
    ENVIRONMENT_PREFIX,
    Leaf,
    leaves,
    load_settings,
    load_settings_and_data,
    parse_settings,
)
from garrison.process.settings.tree import Settings

__all__ = [
    "ENVIRONMENT_PREFIX",
    "Leaf",
    "Settings",
    "leaves",
    "load_settings",
    "load_settings_and_data",
    "parse_settings",
]
