"""Small records as json that tells when it is damaged: its last field is the hash of the others."""

import hashlib
from typing import Any, TypeVar

import msgspec

SEAL = "seal"  # sha256 of the other fields as compact json with sorted keys
T = TypeVar("T")


def encode_json(value: Any) -> bytes:
    """Write a value so that a person can read it; infinity becomes null."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def sealed(value: Any) -> bytes:
    """Write a record in the same way, with its seal."""
    fields = msgspec.json.decode(msgspec.json.encode(value))
    fields[SEAL] = _hash(fields)
    return encode_json(fields)


def unsealed(data: bytes, kind: type[T]) -> T:
    """Read a record back; raises ValueError on damage. One of before there were seals has none."""
    fields = msgspec.json.decode(data)
    if isinstance(fields, dict):
        seal = fields.pop(SEAL, None)
        if seal is not None and seal != _hash(fields):
            raise ValueError(f"its {SEAL} is not that of its content")
    return msgspec.json.decode(data, type=kind)


def _hash(fields: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()
