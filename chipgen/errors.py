"""The two ways in which input is turned down: the whole run, or one picture of it."""


class Refusal(Exception):
    """The run can't go on. The message names the thing, the rule, the value and the remedy."""


class PictureError(Exception):
    """One picture can't be used; it is rejected with this reason and the run goes on."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
