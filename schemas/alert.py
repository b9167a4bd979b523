"""What a result wants somebody to look at."""

from schemas.base import Frozen


class Alert(Frozen):
    """A field `alerts` of a result holds some, or none."""

    kind: str
    """In a word, such as `discoveries`."""
    message: str
    """What was found, in a sentence."""
    value: float
    threshold: float
    """What the value passed."""
    key: str = ""
    """What it is about, where the same may be found again in another artifact of the stage, such as the scores at which they changed: it
    is told once. Empty: it is about the artifact."""
