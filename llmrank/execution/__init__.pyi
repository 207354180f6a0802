"""How a run computes: passes over blocks, the processes that divide it, and the files of its work directory."""

from .execution import Execution
from .join import join_processes
from .launched import launched_processes
from .processes import Processes

__all__ = ["Execution", "Processes", "join_processes", "launched_processes"]
