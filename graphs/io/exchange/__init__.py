"""Files for other programs: GraphML, GEXF and JSON for small graphs, tables and npz for graphs of any size.

Only npz files can be read here, by :func:`read_npz`. Others read the rest: networkx reads GraphML and GEXF, and
:func:`graphs.io.convert.from_networkx` makes a layered graph of the result; pandas and pyarrow read tables, and Neuronpedia the
JSON of :func:`write_neuronpedia`.
:mod:`graphs.io.graph_files` saves and loads graphs and ranks in the format of this package.
"""

from graphs.io.exchange.archive import read_npz, write_npz
from graphs.io.exchange.formats import Format, exchange_formats
from graphs.io.exchange.markup import write_gexf, write_graphml
from graphs.io.exchange.neuronpedia import write_neuronpedia
from graphs.io.exchange.tables import write_tables

__all__ = [
    "Format",
    "exchange_formats",
    "read_npz",
    "write_gexf",
    "write_graphml",
    "write_neuronpedia",
    "write_npz",
    "write_tables",
]
