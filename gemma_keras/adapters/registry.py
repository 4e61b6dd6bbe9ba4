"""Adapters by name."""

from collections.abc import Callable

from gemma_keras.adapters.adalora import AdaLora
from gemma_keras.adapters.einsum_axes import EinsumAxes
from gemma_keras.adapters.lora import Lora
from gemma_keras.adapters.protocol import Adapter
from gemma_keras.config.sections import AdapterConfig

# By `adapter.method`: (axes of the projection, configuration, Keras dtype policy) -> adapter
ADAPTERS: dict[str, Callable[[EinsumAxes, AdapterConfig, str], Adapter]] = {"lora": Lora, "adalora": AdaLora}
