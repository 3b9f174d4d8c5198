import io
import sys

import pytest

from chipgen.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_terminal_has_a_bar_and_a_log_has_lines(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", out := stream())
    assert list(progress(range(3), unit=" chips", desc="work")) == [0, 1, 2]
    said = out.getvalue()
    assert "3/3" in said
    assert ("\r" in said) == out.isatty()
    if not out.isatty():
        first, last = said.splitlines()
        assert (first[:9], last[:9]) == ("work: 0/3", "work: 3/3")


def test_what_is_counted_by_hand_stands_in_a_log_as_well(monkeypatch):
    monkeypatch.setattr(sys, "stderr", out := io.StringIO())
    with progress(total=8, initial=2, unit=" chips", desc="work") as bar:
        bar.update(4)
        bar.set_postfix(refresh=False, loss="0.5")
    assert out.getvalue().splitlines()[-1].startswith("work: 6/8")
    assert "loss=0.5" in out.getvalue()
