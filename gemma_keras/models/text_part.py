"""The text model of a folder that holds more: multimodal Gemma 3 has a vision encoder and a projector besides.

Its tensors have the names of a text model's with something in front: `language_model.model.layers...` in Google's files and
what `save_pretrained` writes, `model.language_model.layers...` as transformers calls them since 4.52.
"""

import re
from collections.abc import Iterable

_PREFIX = re.compile(r"^(?:language_model\.(?=model\.|lm_head\.)|(model\.)language_model\.)")
_REST = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\..+|layers/gemma3_vision_encoder/.+")


def text_names(names: Iterable[str]) -> dict[str, str]:
    """The tensors of a multimodal folder apart from those for images: their names as in a text model, and in the folder.

    >>> text_names(["language_model.model.norm.weight", "vision_tower.post_layernorm.weight"])
    {'model.norm.weight': 'language_model.model.norm.weight'}
    >>> text_names(["model.language_model.norm.weight", "model.multi_modal_projector.mm_soft_emb_norm.weight"])
    {'model.norm.weight': 'model.language_model.norm.weight'}
    """
    return {_PREFIX.sub(r"\1", name): name for name in names if not reads_images(name)}


def reads_images(name: str) -> bool:
    """Whether a tensor of a Hugging Face folder, or a group of a Keras preset, belongs to the vision encoder or the projector."""
    return _REST.fullmatch(name) is not None


def left_out(sizes: Iterable[int]) -> str:
    """A line about the tensors for images, of so many bytes each, that are not read."""
    sizes = list(sizes)
    return f"{len(sizes)} tensors of the vision encoder and its projector ({sum(sizes) / 1e9:.2f} GB) are left out"
