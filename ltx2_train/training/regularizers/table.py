"""Name -> class of each regularizer. The names are those of the settings."""

from __future__ import annotations

from ...registry import Registry
from .base import Regularizer
from .crepa import Crepa
from .divergence import PriorDivergence
from .preserve import AudioDop, Blank, Dop
from .rollout import Rollout
from .self_flow import SelfFlow
from .tread import Tread

REGULARIZERS: Registry[type[Regularizer]] = Registry("regularizer")
for _class in (Blank, Dop, PriorDivergence, AudioDop, Crepa, SelfFlow, Tread, Rollout):
    REGULARIZERS.add(_class.name, _class)
