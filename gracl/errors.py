"""The errors of gracl: one family, each carrying one string so that it survives the way between processes.

The string has three parts: what was expected, what came, what to do next. `assert` is only for our own mistakes.
"""


class GraclError(Exception):
    """Anything that gracl refuses. Doors print its message and end with `exit_code`: 2 for what the user can mend."""

    exit_code = 1


class ConfigError(GraclError):
    """A preset, an override or a combination of settings that cannot be run."""

    exit_code = 2


class LayoutError(GraclError):
    """A raw folder or manifest that does not look like the layout it was said to have."""

    exit_code = 2


class ShardError(GraclError):
    """Shards that are missing, torn, of another schema, or not what their manifest says."""

    exit_code = 2


class StorageError(GraclError):
    """A store that does not answer, does not let us in, or has no such bucket."""

    exit_code = 2


class ImageError(GraclError):
    """Bytes that cannot be read as a picture."""

    exit_code = 2


class LargePicture(ImageError):
    """A picture of more pixels than anybody is to decode."""


class StoredIndexError(GraclError):
    """A stored index or calibration that is missing, torn, or of another schema."""

    exit_code = 2


class CoverageError(GraclError):
    """A gathered feature table in which an image is missing or stands twice."""


class ClusteringCollapsed(GraclError):
    """Too few clusters to learn from: everything is noise, or everything is one cluster."""


class CheckpointError(GraclError):
    """A checkpoint that is missing, torn, or belongs to another recipe."""

    exit_code = 2


class StreamError(GraclError):
    """A stream that delivered another ticket than the plan asked for."""


class NonFiniteValue(GraclError):
    """A feature or a proxy that is NaN or infinite; no rank has learnt from it."""


class NonFiniteLoss(NonFiniteValue):
    """The loss or gradient of some rank is not a number; no rank has taken the step."""


class RanksDiffer(GraclError):
    """Ranks that are to hold the same weights do not, bit for bit."""


class WaitedTooLong(GraclError):
    """Something that was waited for did not come in time, though nobody that was to bring it has died."""


class TrainingFailed(GraclError):
    """A training that ended for a reason outside gracl: lost machines, a full disk, an error in a library."""


def expected(what: str, came: object, do: str) -> str:
    """Builds the one string of an error from its three parts."""
    return f"expected {what}; came {came}; {do}"
