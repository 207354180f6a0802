"""Figures of layered graphs and their ranks, drawn with matplotlib on given axes or new ones.

Every figure function returns its axes and uses no global state. Where there are too many nodes, layers or steps to draw them
all, the function draws averages, densities or a selection, or raises an error that says what to draw instead. A bucket is a
group of nodes with similar scores.

========================== ========================================================= ==============================
figure                     shows                                                     up to
========================== ========================================================= ==============================
:func:`node_link`          the nodes and edges of a subgraph                         300 nodes
:func:`layer_flow`         how score flows between buckets of nodes, layer by layer  12 layers, then a heat map
:func:`adjacency_heatmap`  the edges of one block, nodes ordered by score            any block
:func:`score_heatmap`      scores by layer, nodes ordered by score, and numbers kept any number of layers and nodes
:func:`group_heatmap`      a value of each group of nodes, and the groups removed    any number of layers and groups
:func:`score_distribution` how unequal scores are: the distribution in every layer   8 layers, then bands
:func:`lorenz_curves`      how unequal scores are: Lorenz curves, Gini coefficients  8 layers, then bands
:func:`compare_scores`     two scores of the same nodes                              any number of nodes
:func:`kept_by_layer`      nodes kept and removed, and the score removed             any number of layers
:func:`convergence`        residual and error bound of every step                    any number of steps
========================== ========================================================= ==============================
"""

from graphs.draw.adjacency import adjacency_heatmap
from graphs.draw.concentration import lorenz_curves, score_distribution
from graphs.draw.convergence import convergence
from graphs.draw.flow import layer_flow
from graphs.draw.nodelink import node_link
from graphs.draw.scores import compare_scores, group_heatmap, kept_by_layer, score_heatmap

__all__ = [
    "adjacency_heatmap",
    "compare_scores",
    "convergence",
    "group_heatmap",
    "kept_by_layer",
    "layer_flow",
    "lorenz_curves",
    "node_link",
    "score_distribution",
    "score_heatmap",
]
