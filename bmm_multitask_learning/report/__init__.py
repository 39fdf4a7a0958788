"""A report as one HTML file: text, facts, tables and figures, nothing fetched from anywhere.

The file carries its style and its pictures, follows the reader's light or dark setting, reads on a
telephone and prints. All text is escaped; a policy in the page forbids scripts and network.
"""

from bmm_multitask_learning.report.page import write_report
from bmm_multitask_learning.report.sections import (
    Column,
    Facts,
    Figure,
    Section,
    Table,
    Text,
    drawn,
)

__all__ = ["Column", "Facts", "Figure", "Section", "Table", "Text", "drawn", "write_report"]
