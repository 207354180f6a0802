"""The page of an inspection: its data, its templates, and the file that joins them."""

from llmrank.inspection.page.page_data import payload
from llmrank.inspection.page.rendering import SCRIPTS, render, write_page

__all__ = ["SCRIPTS", "payload", "render", "write_page"]
