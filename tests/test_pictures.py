"""Pictures on their way in: what is decoded ahead, and how many."""

import math
import threading

import made_up
import pytest

from chipgen.errors import Refusal
from chipgen.shards import ShardSettings
from chipgen.storage import LocalFolder
from infer.pictures import Room, Source, decoded
from infer.settings import InferSettings


@pytest.fixture
def photos(tmp_path):
    """A folder with a picture."""
    (tmp_path / "a.jpg").write_bytes(made_up.encoded(made_up.noise(120, 80)))
    return tmp_path


def test_what_chips_are_cut_from_is_not_too_large_to_be_looked_at():
    assert InferSettings().max_megapixels == ShardSettings().max_megapixels


def test_a_folder_of_annotated_pictures_that_has_gone_is_refused(photos):
    missing = [Source(LocalFolder(photos), "nix.jpg"), str(photos / "nix/a.jpg")]
    assert all("missing_file" in one.error for one in decoded(missing, 10**6))
    with pytest.raises(Refusal, match=r"picture folder .*nix: not there, or empty"):
        list(decoded([Source(LocalFolder(photos / "nix"), "a.jpg")], 10**6))


def test_few_large_pictures_are_decoded_ahead(photos, monkeypatch):
    taken = []

    def pictures():
        for n in range(30):
            taken.append(n)
            yield str(photos / "a.jpg")

    counts = {}
    for most in (1, 10**9):
        monkeypatch.setattr("infer.pictures.AHEAD_PIXELS", most)
        taken.clear()
        ahead = [len(taken) - n for n, _ in enumerate(decoded(pictures(), math.inf))]
        counts[most] = max(ahead)
        assert len(ahead) == 30
    assert counts[1] == 1
    assert 1 < counts[10**9] <= 10


def test_pixels_ahead_have_room_and_what_is_asked_for_gets_it_in_any_case():
    room, got = Room(100), []

    def take(number, pixels):
        room.take(number, pixels)
        got.append(number)

    others = [threading.Thread(target=take, args=(n, 80)) for n in (1, 0)]
    take(2, 90)  # a later picture is quicker
    for other in others:
        other.start()
    room.ask(0)
    others[1].join(timeout=20)
    assert got == [2, 0]
    room.leave(0)
    room.leave(2)
    others[0].join(timeout=20)
    assert got == [2, 0, 1]
    room.take(1, 95)  # the same once more, by another reader


def test_large_files_behind_small_ones_wait_until_they_are_asked_for(photos, monkeypatch):
    most = 5_000
    names = ["small"] * 9 + ["large"] * 9 + ["small"] * 9
    for name, size in (("small", (20, 20)), ("large", (60, 60))):
        (photos / f"{name}.jpg").write_bytes(made_up.encoded(made_up.noise(*size)))
    held = []
    inner = Room.take

    def noting(self, number, pixels):
        inner(self, number, pixels)
        held.append(sum(self._held.values()))

    monkeypatch.setattr(Room, "take", noting)
    monkeypatch.setattr("infer.pictures.AHEAD_PIXELS", most)
    found = list(decoded([str(photos / f"{name}.jpg") for name in names], math.inf))
    assert [one.pixels.shape[0] for one in found] == [20] * 9 + [60] * 9 + [20] * 9
    assert max(held) <= most + 60 * 60  # and the one that is asked for
    only = decoded([str(photos / name) for name in ("small.jpg", *["large.jpg"] * 9)], math.inf)
    assert [next(only).pixels.shape[0] for _ in range(2)] == [20, 60]
    before = len(held)
    only.close()  # ends, and who still waits has not decoded; one may have had room
    assert len(held) <= before + 1
