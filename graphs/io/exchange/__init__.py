"""Files for other programs: GraphML and GEXF for small graphs, tables and npz for graphs of any size.

:mod:`graphs.io.graph_files` saves and loads graphs and ranks in the format of this package.
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
