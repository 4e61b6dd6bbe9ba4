"""Objectives by name."""

from collections.abc import Callable

from keras_hub.models import Backbone

from gemma_keras.adapters.inject import AdapterStack
from gemma_keras.config.stages import StepConfig
from gemma_keras.parallel.plan import ComputePlan
from gemma_keras.training.objectives.base import Objective
from gemma_keras.training.objectives.dpo import Preference
from gemma_keras.training.objectives.supervised import Supervised

# By `train.loss`: (configuration, backbone, its adapters, plan) -> objective
OBJECTIVES: dict[str, Callable[[StepConfig, Backbone, list[AdapterStack], ComputePlan], Objective]] = {
    "supervised": Supervised.of,
    "preference": Preference.of,
}
