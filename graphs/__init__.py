"""PageRank of layered graphs and of other weighted digraphs.

>>> from graphs import LayeredGraph, weighted_pagerank
>>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 2.0]]], inputs=[1, 1], activations=[[1, 1]])
>>> weighted_pagerank(graph).converged
True

A name is imported when it is first used; ``__init__.pyi`` lists the names.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
