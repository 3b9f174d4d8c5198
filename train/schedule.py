"""The learning rate as a function of the place in the data: linear scaling, warm-up, steps."""

from train.settings import TrainSettings


def rate(settings: TrainSettings, epoch: float) -> float:
    """Give the learning rate at a place, in epochs."""
    full = settings.lr * settings.batch / settings.lr_batch
    if epoch < settings.warmup:
        start = min(settings.warmup_lr, full)
        return start + (full - start) * epoch / settings.warmup
    for place, factor in settings.steps_down:
        if epoch >= place:
            full *= factor
    return full
