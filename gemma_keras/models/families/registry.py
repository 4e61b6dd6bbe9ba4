"""The families by name: their shapes, and their form in `config.json`.

A new family is a module like `gemma2.py` and its entry in `_MODULES`; weights that it alone has are rows of
`models/weight_table.py`. A module has `FAMILY`, its name, which is Hugging Face's `model_type`; `HF_CLASS`, transformers' class;
`SHAPES`, the named ones; `own_config`, what `config.json` says beyond what all families write; and `from_hf_config`, the way
back.
"""

from typing import Any

from gemma_keras.config.errors import UserError
from gemma_keras.models.architecture import Architecture
from gemma_keras.models.families import gemma, gemma2, gemma3
from gemma_keras.models.families.config_json import common_config

_MODULES = (gemma2, gemma3, gemma)
FAMILIES = {module.FAMILY: module for module in _MODULES}
ARCHITECTURES: dict[str, Architecture] = {shape.name: shape for module in _MODULES for shape in module.SHAPES}


def get_architecture(name: str) -> Architecture:
    """The named shape; `UserError` lists the names when there is none."""
    if name not in ARCHITECTURES:
        raise UserError(f"no architecture is called {name!r}: choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def to_hf_config(architecture: Architecture, dtype: str) -> dict[str, Any]:
    """The `config.json` that transformers 4 and 5 read, with `dtype` as the dtype of the weights."""
    family = FAMILIES[architecture.family]
    return common_config(architecture, family.HF_CLASS, dtype) | family.own_config(architecture)


def from_hf_config(config: dict[str, Any], name: str = "") -> Architecture:
    """The shape that a parsed `config.json` describes, of a multimodal model its text part; absent fields have transformers'
    defaults.

    `UserError` for a model of none of the families, or one that departs from what its family computes.
    """
    if config.get("model_type") == gemma3.MULTIMODAL:
        config = gemma3.text_config(config)
    kind = config.get("model_type")
    if kind not in FAMILIES:
        expected = " or ".join(map(repr, FAMILIES))
        raise UserError(f"config.json has model_type {kind!r}; expected {expected}: point at a Gemma 1, 2 or 3 model")
    return FAMILIES[kind].from_hf_config(config, name or kind)
