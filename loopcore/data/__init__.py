"""Batches of arrays that are in memory, and ways to put loaders together.

A loader is anything that can be iterated for one epoch after another: a list of batches, the loader of a framework,
or what `batches`, `combine` and `cycle` return. Those three can also say where they are, as JSON, and go on there.
"""

from __future__ import annotations

from loopcore.data.batching import Batches, batches
from loopcore.data.combining import Combined, combine
from loopcore.data.cycling import Cycle, cycle
from loopcore.data.splitting import split

__all__ = ["Batches", "Combined", "Cycle", "batches", "combine", "cycle", "split"]
