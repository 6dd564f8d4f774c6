"""What can go wrong, as a user sees it.

    PDNetError                 exit code 2: one line on stderr, no traceback
    ├── ConfigError            params file or command line
    ├── DataError              images, masks, clips, lists
    │   └── ValidationError    the data breaks a rule that training relies on
    ├── CheckpointError        weights that are missing, damaged or of another architecture
    ├── TrainingError          training cannot go on
    ├── ExportError            an exported file that cannot be written or is not the same model
    ├── TrackingError          the MLflow store does not answer or refuses
    ├── RefusedError           exit code 3: a registered model that is not what it has to be
    │   ├── PromotionError     it has not earned its alias
    │   └── VerificationError  it is not what its record says
    └── UnavailableError       exit code 4: a library or device that this machine lacks

A message says which file or key, what was found, what was expected, and what to do where that is not plain.
"""

from __future__ import annotations


class PDNetError(Exception):
    """Any failure that a user can act on; never shown with a traceback.

    Attributes:
        table: what was compared, for the user's terminal; may be empty.
    """

    exit_code = 2

    def __init__(self, message: str, table: str = "") -> None:
        super().__init__(message)
        self.table = table


class ConfigError(PDNetError):
    """A key or value of the configuration is wrong."""


class DataError(PDNetError):
    """An input file is missing, damaged, or not what the layout promises."""


class ValidationError(DataError):
    """The data set breaks at least one rule that training relies on."""


class CheckpointError(PDNetError):
    """A checkpoint is missing, damaged, or belongs to another architecture."""


class TrainingError(PDNetError):
    """Training cannot go on: the loss is no longer a number."""


class ExportError(PDNetError):
    """An exported file could not be written or does not compute the same function."""


class TrackingError(PDNetError):
    """The tracking store cannot be reached or refuses the record."""


class UnknownVersionError(TrackingError):
    """There is no such model, alias or version in the registry."""


class RefusedError(PDNetError):
    """A registered model is not what it has to be."""

    exit_code = 3


class PromotionError(RefusedError):
    """A model version does not meet the promotion policy."""


class VerificationError(RefusedError):
    """A model version is not what its record says."""


class UnavailableError(PDNetError):
    """A library or a device that this machine does not have is needed."""

    exit_code = 4
