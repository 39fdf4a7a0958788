"""What `bmm-mtl demo` runs: 65 inner-London schools, from rows to a report."""

from bmm_multitask_learning.demo.page import write_demo
from bmm_multitask_learning.demo.study import Study, study_schools

__all__ = ["Study", "study_schools", "write_demo"]
