"""The exceptions of pushforward, and the one way their messages are built.

Every class derives from the builtin that a caller would expect; argument errors are ``RuntimeError`` too,
because that is what ``torch.func`` raises for the same mistakes.
"""


class PushforwardError(Exception):
    """Anything that pushforward raises on purpose."""


class ArgumentTypeError(PushforwardError, TypeError, RuntimeError):
    """An argument has the wrong type."""


class ArgumentValueError(PushforwardError, ValueError, RuntimeError):
    """An argument has the right type and a value that cannot be used."""


class RandomnessError(PushforwardError, RuntimeError):
    """A random operator ran although ``randomness='error'``."""


class MemoryLimitError(PushforwardError, MemoryError):
    """A call is expected to need more memory than it may take, however few columns it carries at once."""


class MissingPackageError(PushforwardError, ImportError):
    """An option needs a package that is not installed."""


class MissingRuleError(PushforwardError, NotImplementedError):
    """Nobody, neither pushforward nor PyTorch, can differentiate an operator."""


class RuleError(PushforwardError, ValueError):
    """A rule gave a linear map that does not fit its operator."""


class ResidualError(PushforwardError, RuntimeError):
    """A tensor that a recorded derivative needs was written to in place."""


class UnsupportedError(PushforwardError, RuntimeError):
    """The function does something through which a derivative cannot be followed."""


def message(function: str, what: str, got: object, expected: str, way_out: str) -> str:
    """Return ``function: what: got ..., expected .... way out.``."""
    return f"{function}: {what}: got {got}, expected {expected}. {way_out}"
