"""The tokenizer in the metadata of a GGUF file, as a SentencePiece model."""

from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec

from gemma_keras.config.errors import UserError
from gemma_keras.models.gguf_file import GgufFile
from gemma_keras.models.weight_checks import damaged
from gemma_keras.text.tokenizer import STEERING

_KEYS = "tokenizer.ggml."
_SPACE = "\u2581"  # SentencePiece's sign for a blank
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
Type = ModelProto.SentencePiece


def sentencepiece_model(file: GgufFile) -> bytes:
    """The tokenizer as a SentencePiece model that gives the ids of the one that the file was made from.

    llama.cpp's converter writes three things otherwise than that one, and here they are as they were: blanks in user-defined
    pieces, turn tokens (control pieces there), and rows of embeddings beyond the pieces, each of which got a name.

    Raises:
        UserError: the file has no tokenizer, or one of another kind.
    """
    kind, pieces = file.metadata.get(f"{_KEYS}model"), file.metadata.get(f"{_KEYS}tokens", [])
    scores, types = (file.metadata.get(_KEYS + name, []) for name in ("scores", "token_type"))
    if kind != "llama" or not len(pieces) == len(scores) == len(types) > 0:
        what = "no whole tokenizer" if kind in ("llama", None) else f"a tokenizer of kind {kind!r}"
        raise UserError(
            f"{file.path} has {what}, and only SentencePiece's (kind 'llama') can be read; give the model's tokenizer.model "
            "with --config.tokenizer.path"
        )
    count = len(pieces)
    while count and types[count - 1] == Type.UNUSED and pieces[count - 1] == f"[PAD{count - 1}]":
        count -= 1
    model = ModelProto()
    for text, score, of_type in zip(pieces[:count], scores, types):
        if text in _SPECIAL:
            of_type = Type.UNKNOWN if text == "<unk>" else Type.CONTROL
        elif of_type == Type.CONTROL and STEERING.fullmatch(text):
            of_type = Type.USER_DEFINED
        if of_type == Type.USER_DEFINED:
            text = text.replace(" ", _SPACE)
        try:
            model.pieces.add(piece=text, score=score if of_type == Type.NORMAL else 0.0, type=of_type)
        except ValueError as error:
            raise damaged(file.path, error) from error
    spec = model.trainer_spec
    spec.model_type, spec.vocab_size, spec.byte_fallback, spec.split_digits = TrainerSpec.BPE, count, True, True
    for text in set(_SPECIAL).intersection(pieces):
        setattr(spec, f"{text[1:-1]}_id", pieces.index(text))
        setattr(spec, f"{text[1:-1]}_piece", text)
    normalizer = model.normalizer_spec
    normalizer.name, normalizer.escape_whitespaces = "identity", True
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
    return model.SerializeToString(deterministic=True)
