import math

import msgspec
import pytest

from chipgen.sealed import sealed, unsealed


class Record(msgspec.Struct, frozen=True):
    name: str
    limits: list[float | None]
    counts: dict[str, int]


RECORD = Record("ant", [0.1, 1e300, None], {"b": 2, "a": 1})


def test_a_record_comes_back_and_infinity_is_null():
    assert unsealed(sealed(RECORD), Record) == RECORD
    endless = {**msgspec.to_builtins(RECORD), "limits": [math.inf]}
    assert unsealed(sealed(endless), Record).limits == [None]


def test_no_flipped_bit_gives_another_record():
    data = sealed(RECORD)
    read = 0
    for place in range(len(data)):
        for bit in range(8):
            changed = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
            try:
                assert unsealed(changed, Record) == RECORD
                read += 1  # white space, or the seal's own name
            except ValueError:
                continue
    assert read < len(data)


def test_no_cut_gives_another_record():
    data = sealed(RECORD)
    for size in range(len(data.rstrip())):
        with pytest.raises(ValueError, match=r"."):
            unsealed(data[:size], Record)


def test_a_record_without_a_seal_is_read_as_before():
    assert unsealed(msgspec.json.encode(RECORD), Record) == RECORD
