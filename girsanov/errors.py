"""The one exception that users see as a sentence: what is wrong, and what to do about it."""


class GirsanovError(ValueError):
    """Bad input, a mismatch of parts, or a run that cannot go on. The message is one sentence with the fix."""
