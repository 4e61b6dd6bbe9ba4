"""SentencePiece tokenizer in which message content can never become a control token.

SentencePiece matches user-defined pieces such as `<start_of_turn>` wherever they occur in a text, and never matches
control pieces such as `<eos>`. A conversation needs neither: turn tokens must come from the template alone. So control
ids are placed explicitly, and content is cut inside every literal that spells a control piece before it is encoded.
"""

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from gemma_keras.config.errors import UserError

REQUIRED_PIECES = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
# User-defined pieces that also steer the model; SentencePiece does not mark them as control pieces.
STEERING = re.compile(
    r"<(mask|2mass|unused\d+|start_of_turn|end_of_turn|start_of_image|end_of_image|image_soft_token)>|\[(@BOS@|multimodal)\]"
)
# The entry of Gemma 3's tokenizers that stands for a part of an image. It comes last, has no row in the smaller models, and
# means nothing to a model of texts: it is no piece here, wherever it is listed, so that what spells it is text.
IMAGE_ENTRY = "<image_soft_token>"


class Tokenizer:
    """A SentencePiece model with Gemma's control pieces.

    Args:
        path: the `tokenizer.model` file.

    Attributes:
        serialized: the bytes of the file, less an `IMAGE_ENTRY` at its end.

    Raises:
        UserError: the file is missing, is no SentencePiece model, lacks a control piece or adds a leading blank.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        data = _read(self.path)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(data)
            if self._model.piece_to_id(IMAGE_ENTRY) == self._model.get_piece_size() - 1:
                data = _without_last_piece(data)
                self._model.LoadFromSerializedProto(data)
        except RuntimeError as error:
            if data.startswith(b"version https://git-lfs"):
                raise UserError(
                    f"{self.path} is a pointer of Git LFS, not the file itself; run git lfs pull where it was cloned"
                ) from error
            raise UserError(f"{self.path} is no SentencePiece model; give a tokenizer.model file") from error
        self.serialized = data
        self.vocabulary_size: int = self._model.get_piece_size()
        self.control_pieces: dict[str, int] = _control_pieces(self._model, self.path)
        if self._model.encode("a", out_type=str)[:1] not in (["a"], ["<0x61>"]):
            raise UserError(f"{self.path} changes the start of a text; give a model trained without a dummy prefix")

        self.pad_id = self.control_pieces["<pad>"]
        self.eos_id = self.control_pieces["<eos>"]
        self.bos_id = self.control_pieces["<bos>"]
        self.unk_id = self.control_pieces["<unk>"]
        self.start_of_turn_id = self.control_pieces["<start_of_turn>"]
        self.end_of_turn_id = self.control_pieces["<end_of_turn>"]
        self.control_ids = frozenset(self.control_pieces.values())

        literals = sorted(self.control_pieces)
        self._control = re.compile(f"({any_of(literals)})")
        # Zero-width matches, so that overlapping literals are all cut.
        rests = {first: [p[1:] for p in group] for first, group in itertools.groupby(literals, lambda p: p[0])}
        inside = (f"(?<={re.escape(first)})(?={any_of(group)})" for first, group in rests.items())
        self._inside_control = re.compile("|".join(inside))

    def encode_content(self, text: str) -> list[int]:
        """Ids of `text`, none of them a control id; `decode` gives `text` back.

        The one exception is U+2581, which SentencePiece itself uses for a blank and decodes as one.
        """
        return self.encode_content_batch([text])[0]

    def encode_content_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_content` of each text, in one call of SentencePiece on all cores."""
        return [ids.tolist() for ids in self.encode_content_arrays(texts)]

    def encode_content_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `encode_content_batch`, each text as i32[n] (do not write to it), which is quicker."""
        encoded = self._encode(list(texts))
        for index, text in enumerate(texts):
            # Rare, so such a text is encoded once more rather than cut before.
            if self._control.search(text):
                encoded[index] = np.concatenate(self._encode(self._inside_control.split(text)))
        return encoded

    def split_control(self, text: str) -> list[str]:
        """`text` cut around its control literals, which have the odd places."""
        return self._control.split(text)  # the pattern has one group

    def encode_with_control(self, text: str) -> list[int]:
        """Ids of a rendered string, every control literal becoming its id, as Hugging Face tokenizers do; no bos."""
        ids: list[int] = []
        for index, part in enumerate(self.split_control(text)):
            ids.extend([self.control_pieces[part]] if index % 2 else self._model.encode(part))
        return ids

    def decode(self, ids: Iterable[int], skip_control: bool = True) -> str:
        """The text of `ids`; control ids are left out, or written as their literals when `skip_control` is false."""
        text: list[str] = []
        run: list[int] = []
        for token in map(int, ids):
            if token not in self.control_ids:
                run.append(token)
                continue
            text.append(self._model.decode(run))
            run = []
            if not skip_control:
                text.append(self._model.id_to_piece(token))
        text.append(self._model.decode(run))
        return "".join(text)

    def piece_bytes(self, token: int) -> bytes:
        """What an id adds to the UTF-8 of a text; of a control id its literal, which `decode` leaves out."""
        piece: str = self._model.id_to_piece(token)
        return bytes([int(piece[3:5], 16)]) if self.is_byte(token) else piece.replace("\u2581", " ").encode()

    def is_byte(self, token: int) -> bool:
        """Whether an id is a piece that spells one byte, such as `<0xE4>`."""
        return self._model.is_byte(token)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        # A short list is not worth the start of a thread pool.
        threads = (os.cpu_count() or 1) if len(texts) > 64 else 1
        return self._model.encode_as_numpy(texts, num_threads=threads)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"no tokenizer at {path} ({error.strerror}); give an existing tokenizer.model file") from error


def _without_last_piece(data: bytes) -> bytes:
    model = ModelProto.FromString(data)
    del model.pieces[-1]
    return model.SerializeToString()


def any_of(literals: Sequence[str]) -> str:
    """A pattern of the longest of the sorted `literals` at a place, which looks at each character once.

    Gemma 3 has 6,249 of them, nearly all with the same beginning; an alternation would try one after the other.

    >>> any_of(["<a1>", "<a12>", "<b", "<b>"])
    '<(?:a1(?:>|2>)|b(?:>)?)'
    """
    rest = literals[1:] if literals[0] == "" else literals
    if not rest:
        return ""
    groups = itertools.groupby(rest, lambda literal: literal[0])
    branches = [re.escape(first) + any_of([literal[1:] for literal in group]) for first, group in groups]
    if rest is not literals:
        return f"(?:{'|'.join(branches)})?"
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _control_pieces(model: sentencepiece.SentencePieceProcessor, path: Path) -> dict[str, int]:
    """Literal -> id of the control pieces that the model has, in order of their ids."""
    pieces = ((model.id_to_piece(token), token) for token in range(model.get_piece_size()))
    present = {
        piece: token
        for piece, token in pieces
        if STEERING.fullmatch(piece) or model.is_control(token) or model.is_unknown(token)
    }
    missing = [piece for piece in REQUIRED_PIECES if piece not in present]
    if missing:
        raise UserError(f"{path} has no piece {', '.join(missing)}; give a model with Gemma's control pieces")
    return present
