"""Datasets in, labels out: tables to request rows, and answers back to tables.

`prepare`, `export`, `label` and `plan` are the commands of the same names. Nothing here loads jinja2, jmespath or
pyarrow before it is needed.
"""

from batchrouter.dataset.export import Exported, export
from batchrouter.dataset.label import Labelled, label, plan
from batchrouter.dataset.labels import Shape, read_schema, shape_of_labels
from batchrouter.dataset.prepare import Question, prepare, write_requests

__all__ = [
    "Exported",
    "Labelled",
    "Question",
    "Shape",
    "export",
    "label",
    "plan",
    "prepare",
    "read_schema",
    "shape_of_labels",
    "write_requests",
]
