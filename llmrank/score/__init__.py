"""Scorers: they compute the importance of every node of a graph.

To write a scorer, override :meth:`BaseScorer.score`, which gets one layer at a time; :meth:`BaseScorer.rank` calls it for
each layer in turn. The PageRank scorers pass a complete graph to ``graphs``, and their ``score`` is one step of that rank.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
