"""The page of an inspection: its data, its templates, and the file that joins them."""

from llmrank.inspection.page.page import SCRIPTS, render, write_page
from llmrank.inspection.page.page_data import DATA_LIMIT, payload

__all__ = ["DATA_LIMIT", "SCRIPTS", "payload", "render", "write_page"]
