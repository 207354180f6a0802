"""How a run computes: passes over blocks, the processes that divide it, and the files of its work directory."""

from llmrank.execution.execution import Execution
from llmrank.execution.join import join_processes, launched_processes
from llmrank.execution.processes import Processes

__all__ = ["Execution", "Processes", "join_processes", "launched_processes"]
