"""Whose code a module is: the one place where the names of loopcore's own packages decide anything."""

from __future__ import annotations

PACKAGES = ("loopcore", "loopcore_jax", "loopcore_tensorflow", "loopcore_torch", "loopcore_numpy", "loopcore_keras")
CALLBACKS = "loopcore.callbacks"
CONFORMANCE = "loopcore.testing.conformance"


def is_ours(module: str, *parts: str) -> bool:
    """Whether a module belongs to loopcore and its adapters.

    Args:
        module: its full name.
        parts: whether it belongs to one of these packages or modules instead.

    Example:
        >>> is_ours("loopcore_torch.models"), is_ours("loopcore_extras"), is_ours("loopcore.state", CALLBACKS)
        (True, False, False)
    """
    if parts:
        return any(module == part or module.startswith(f"{part}.") for part in parts)
    return module.partition(".")[0] in PACKAGES
