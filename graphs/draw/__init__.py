"""Figures of layered graphs and their ranks, drawn with matplotlib onto axes of your own or new ones.

Every figure returns its axes, uses no global state, and keeps to a budget: what is too large to be read is drawn as an
aggregate that says so, or refused with a sentence that says what to draw instead.

========================== =========================================================== ==============================
figure                     shows                                                       up to
========================== =========================================================== ==============================
:func:`node_link`          the top nodes and the edges between them                    300 nodes of any graph
:func:`layer_flow`         rank that flows between buckets of nodes, layer by layer    12 layers, then a heat map
:func:`adjacency_heatmap`  the edges of one block, nodes ordered by score              any block
:func:`score_heatmap`      layers against nodes ordered by score, and the cut          any number of layers and nodes
:func:`score_distribution` how unequal scores are: distribution of every layer         8 layers, then bands
:func:`lorenz_curves`      the same as shares of the whole, with Gini coefficients     8 layers, then bands
:func:`compare_rankings`   two scores of the same nodes                                any number of nodes
:func:`kept_by_layer`      nodes kept and removed, and the score that goes             any number of layers
:func:`convergence`        residual and error bound of every step                      any number of steps
========================== =========================================================== ==============================
"""

from graphs.draw.adjacency import adjacency_heatmap
from graphs.draw.concentration import lorenz_curves, score_distribution
from graphs.draw.convergence import convergence
from graphs.draw.flow import layer_flow
from graphs.draw.nodelink import node_link
from graphs.draw.scores import compare_rankings, kept_by_layer, score_heatmap

__all__ = [
    "adjacency_heatmap",
    "compare_rankings",
    "convergence",
    "kept_by_layer",
    "layer_flow",
    "lorenz_curves",
    "node_link",
    "score_distribution",
    "score_heatmap",
]
