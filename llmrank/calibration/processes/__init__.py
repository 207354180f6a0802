"""The processes that divide the work of one run among themselves, on torch.distributed."""

from llmrank.calibration.processes.join import join_processes, launched_processes
from llmrank.calibration.processes.processes import Processes

__all__ = ["Processes", "join_processes", "launched_processes"]
