"""In which order callbacks run: from what they declare to read and write, by a graph."""

from loopcore.ordering.declarations import ROOTS, overlaps
from loopcore.ordering.order import Edge, Order, order_callbacks

__all__ = ["ROOTS", "Edge", "Order", "order_callbacks", "overlaps"]
