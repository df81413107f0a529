"""A SentencePiece model as a tokenizer.json with the same ids, which `transformers` loads."""

import json
import struct
from collections.abc import Iterator
from typing import Any

from megatron_yuyuan.errors import ConfigError

SPACE = "\u2581"
"""What SentencePiece writes for a space."""
PIECES, TRAINER_SPEC, NORMALIZER_SPEC = 1, 2, 3
PIECE, SCORE, TYPE = 1, 2, 3
MODEL_TYPE, TREAT_WHITESPACE_AS_SUFFIX, BYTE_FALLBACK = 3, 24, 35
CHARSMAP, ADD_DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES, ESCAPE_WHITESPACES = 2, 3, 4, 5
"""Numbers of fields in sentencepiece_model.proto: of ModelProto, SentencePiece, TrainerSpec and
NormalizerSpec."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Types of pieces."""
UNIGRAM, BPE = 1, 2
"""Types of models."""
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Kinds of values in the wire format of protocol buffers."""


def tokenizer_json(model: bytes) -> bytes:
    """tokenizer.json of the content of a .model file that SentencePiece has opened without error.

    Only of a model that takes texts as they are, as `train_sentencepiece` makes them. Raises
    ConfigError for others.
    """
    algorithm, pieces, scores, types = _algorithm(model), *_pieces(model)
    unknown = types.index(UNKNOWN)
    if algorithm == "Unigram":
        rules = {"unk_id": unknown, "vocab": list(zip(pieces, scores, strict=True))}
    else:
        rules = {
            "unk_token": pieces[unknown],
            "fuse_unk": True,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": _merges(pieces, scores, types),
        }
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document = {
        "version": "1.0",
        "added_tokens": [
            {"id": index, "content": piece, "special": kind == CONTROL, **flags}
            for index, (piece, kind) in enumerate(zip(pieces, types, strict=True))
            if kind in (CONTROL, USER_DEFINED)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {"type": algorithm, "byte_fallback": True} | rules,
    }
    return json.dumps(document, ensure_ascii=False, indent=1).encode()


def _algorithm(model: bytes) -> str:
    """`Unigram` or `BPE`. Raises ConfigError where the model changes texts before it encodes them,
    or has pieces for what it does not know."""
    spec = dict(_fields(model))
    trainer, normalizer = dict(_fields(spec[TRAINER_SPEC])), dict(_fields(spec[NORMALIZER_SPEC]))
    algorithm = {UNIGRAM: "Unigram", BPE: "BPE"}.get(trainer.get(MODEL_TYPE, UNIGRAM))
    as_it_is = (
        not normalizer.get(CHARSMAP)
        and not normalizer.get(ADD_DUMMY_PREFIX, 1)
        and not normalizer.get(REMOVE_EXTRA_WHITESPACES, 1)
        and normalizer.get(ESCAPE_WHITESPACES, 1)
        and not trainer.get(TREAT_WHITESPACE_AS_SUFFIX)
        and trainer.get(BYTE_FALLBACK)
    )
    if not (algorithm and as_it_is):
        raise ConfigError(
            "this SentencePiece model has no tokenizer.json with the same ids",
            "transformers would give others for texts that the model changes first",
            "a model that tools/train_tokenizer.py made, or one learned with identity "
            "normalisation, byte_fallback, and neither dummy prefix nor removed white space",
        )
    return algorithm


def _pieces(model: bytes) -> tuple[list[str], list[float], list[int]]:
    """Text, score and type of every piece, by id."""
    pieces = [dict(_fields(value)) for number, value in _fields(model) if number == PIECES]
    return (
        [piece[PIECE].decode() for piece in pieces],
        [struct.unpack("<f", piece.get(SCORE, bytes(4)))[0] for piece in pieces],
        [piece.get(TYPE, NORMAL) for piece in pieces],
    )


def _merges(pieces: list[str], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the piece with the highest score first: what
    SentencePiece's BPE joins by."""
    known = {piece for piece, kind in zip(pieces, types, strict=True) if kind == NORMAL}
    ranked = sorted(zip(pieces, scores, strict=True), key=lambda entry: -entry[1])
    return [
        (piece[:cut], piece[cut:])
        for piece, _ in ranked
        if piece in known
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of the fields of a protocol buffer that was parsed once without error: an int of a
    VARINT, bytes of the others, as the number of a field says.

    Source: https://protobuf.dev/programming-guides/encoding/
    """
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == VARINT:
            number, position = _varint(message, position)
            yield tag >> 3, number
            continue
        if kind == LENGTH_DELIMITED:
            size, position = _varint(message, position)
        else:
            size = {FIXED64: 8, FIXED32: 4}[kind]
        yield tag >> 3, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position
