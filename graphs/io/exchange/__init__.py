"""Files for other programs: GraphML and GEXF of what is looked at, tables and npz of whole graphs.

:mod:`graphs.io.graph_files` saves and loads graphs and ranks for this package itself.
"""

from graphs.io.exchange.archive import read_npz, write_npz
from graphs.io.exchange.markup import read_gexf, read_graphml, write_gexf, write_graphml
from graphs.io.exchange.tables import read_tables, write_tables

__all__ = [
    "read_gexf",
    "read_graphml",
    "read_npz",
    "read_tables",
    "write_gexf",
    "write_graphml",
    "write_npz",
    "write_tables",
]
