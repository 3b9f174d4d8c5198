import dataclasses

import pytest

from train.feedback import MEASURES, Feedback, FeedbackSettings
from train.schedule import rate
from train.settings import TrainSettings

TAU = 0.1
STEPS = 40
SHARES = [0.5, 0.05, 0.1, 0.1001, 0.0, 1.0, 0.3, 0.0999, 0.2]
# per chip of `lr_batch`: rate 0.01, warm-up over a quarter of an epoch, two drops
TRAIN = TrainSettings(
    lr=0.01, lr_batch=16, batch=16, warmup=0.25, warmup_lr=0.001, drops=((2.0, 0.1), (3.5, 0.5))
)


def sums_of(measure, share):
    """Sums of small objects and of all with a share in one measure; others ask for the opposite."""
    other = 0.0 if share > TAU else 1.0
    if measure == "joint":  # shares of the parts: 0, and 10/7 of that of both
        both = {"regression": (0.0, 3.0), "classification": (share * 10, 7.0)}
        return {**both, "input": (other, 1.0)}
    shares = {name: share if name == measure else other for name in MEASURES if name != "joint"}
    return {name: (5 * value, 5.0) for name, value in shares.items()}


def parts_after(feedback, measure, shares):
    """The chips a canvas after each of some batches."""
    parts = []
    for step, share in enumerate(shares):
        feedback.tell(sums_of(measure, share))
        parts.append(feedback.parts(step + 1))
    return parts


def rates(settings, places):
    return [rate(settings, place) for place in places]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("parts", [4, 9])
def test_the_next_batch_is_a_collage_at_or_below_the_threshold(measure, parts):
    settings = FeedbackSettings(mode="feedback", threshold=TAU, measure=measure, parts=parts)
    feedback = Feedback(settings, seed=0)
    expected = [parts if share <= TAU else 1 for share in SHARES]
    assert parts_after(feedback, measure, SHARES) == expected
    assert set(expected) == {1, parts}


@pytest.mark.parametrize("measure", MEASURES)
def test_a_batch_without_objects_keeps_the_last_share(measure):
    settings = FeedbackSettings(mode="feedback", threshold=TAU, measure=measure)
    nothing = {name: (0.0, 0.0) for name in MEASURES if name != "joint"}
    for share, expected in ((0.05, 4), (0.5, 1)):
        feedback = Feedback(settings, seed=0)
        feedback.tell(sums_of(measure, share))
        last = feedback.last
        assert last == pytest.approx(share)
        feedback.tell(nothing)
        assert feedback.last == last
        assert feedback.parts(2) == expected


def test_the_first_batch_is_regular_and_a_resumed_run_goes_on_where_it_was():
    settings = FeedbackSettings(mode="feedback", threshold=TAU)
    assert Feedback(settings, seed=0).parts(0) == 1
    assert Feedback(settings, seed=0, last=0.04).parts(100) == 4
    assert Feedback(settings, seed=0, last=0.4).parts(100) == 1


@pytest.mark.parametrize(("mode", "expected"), [("never", 1), ("all", 4)])
def test_some_modes_do_not_listen(mode, expected):
    feedback = Feedback(FeedbackSettings(mode=mode, threshold=TAU), seed=0)
    assert feedback.parts(0) == expected
    assert parts_after(feedback, "regression", SHARES) == [expected] * len(SHARES)


def test_the_random_mode_shrinks_half_of_the_steps_whatever_the_loss():
    def drawn(seed, last):
        feedback = Feedback(FeedbackSettings(mode="random"), seed, last)
        return [feedback.parts(step) for step in range(1000)]

    assert set(drawn(0, 1.0)) == {1, 4}
    assert 400 < drawn(0, 1.0).count(4) < 600
    assert drawn(0, 1.0) == drawn(0, 0.0)
    assert drawn(0, 1.0) != drawn(1, 1.0)


@pytest.mark.parametrize("wrong", [{"parts": 3}, {"parts": 0}, {"threshold": 1.5}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FeedbackSettings(**wrong)


@pytest.mark.parametrize("batch", [1, 16, 24, 256])
def test_the_rate_is_linear_in_the_batch(batch):
    scaled = dataclasses.replace(TRAIN, batch=batch)
    places = [0.25, 1.0, 2.5, 4.0]
    expected = [value * batch / 16 for value in rates(TRAIN, places)]
    assert rates(scaled, places) == pytest.approx(expected)


@pytest.mark.parametrize("batch", [16, 256])
def test_the_rate_rises_in_a_line_from_the_warm_up_rate(batch):
    settings = dataclasses.replace(TRAIN, batch=batch)
    full = 0.01 * batch / 16
    places = [0.25 * k / STEPS for k in range(STEPS + 1)]
    expected = [0.001 + (full - 0.001) * k / STEPS for k in range(STEPS + 1)]
    assert rates(settings, places) == pytest.approx(expected)
    assert rate(settings, 0.25) == pytest.approx(full)


def test_a_small_batch_does_not_warm_up_from_above():
    settings = dataclasses.replace(TRAIN, batch=1)
    assert rates(settings, [0, 0.1, 0.25]) == pytest.approx([0.01 / 16] * 3)


def test_without_warm_up_the_rate_is_full_from_the_start():
    assert rate(dataclasses.replace(TRAIN, warmup=0.0), 0.0) == pytest.approx(0.01)


def test_the_rate_drops_at_fractions_of_epochs():
    found = rates(TRAIN, [1.999, 2.0, 3.499, 3.5, 9.0])
    assert found == pytest.approx([0.01, 0.001, 0.001, 0.0005, 0.0005])
    sniper = TrainSettings(batch=128)
    assert sniper.length == 6
    assert rates(sniper, [1, 5.32, 5.33, 5.99]) == pytest.approx([0.015, 0.015, 0.0015, 0.0015])


@pytest.mark.parametrize(
    ("policy", "epochs", "expected"),
    [
        ("normal", 11, {7.99: 1, 8: 0.1, 9.99: 0.1, 10: 0.01, 10.99: 0.01}),
        ("long", 18, {10.99: 1, 11: 0.1, 13.99: 0.1, 14: 0.01, 16.99: 0.01, 17: 0.005}),
    ],
)
def test_policies_are_those_of_megdet(policy, epochs, expected):
    settings = dataclasses.replace(TRAIN, policy=policy)
    assert settings.length == epochs
    found = rates(settings, expected)
    assert found == pytest.approx([0.01 * factor for factor in expected.values()])


@pytest.mark.parametrize("policy", ["own", "long"])
def test_the_rpn_alone_has_a_fixed_rate_and_its_own_length(policy):
    settings = dataclasses.replace(TRAIN, task="rpn", policy=policy, rpn_epochs=4)
    assert settings.length == 4
    assert rates(settings, [0.25, 1.99, 2.0, 3.99]) == pytest.approx([0.01] * 4)
    assert TrainSettings(task="rpn").length == 2
