"""What a release refuses."""

from custom.support.errors import UserError


class ReleaseError(UserError):
    """A package that must not be made, or one that is not what it says."""
