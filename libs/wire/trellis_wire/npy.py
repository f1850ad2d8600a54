"""The header of NPY files, read far enough to tell arrays of plain values from pickled Python objects."""

from __future__ import annotations

import ast
import re
from typing import Any, Final

from trellis_wire.objects import Buffer, ObjectError

_MAGIC: Final = b"\x93NUMPY"
_MAX_HEADER: Final = 64 * 1024
# What numpy writes for an array of one plain type; anything else is read as a Python literal.
_PLAIN: Final = re.compile(
    rb"\{'descr': '[<>|=][biufcmMSUV?]\d+[^']*', 'fortran_order': (?:True|False), 'shape': \([\d, ]*\), \} *\n"
)


def refuse_pickle(data: Buffer) -> None:
    """ObjectError unless this is an NPY file of plain values: reading Python objects would run their sender's code."""
    start = bytes(data[:12])
    if start[:6] != _MAGIC or len(start) < 12 or start[6] not in {1, 2, 3}:
        raise ObjectError("The array's data is not an NPY file; send what numpy.save writes.")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(start[8 : 8 + width], "little")
    header = bytes(data[8 + width : 8 + width + min(length, _MAX_HEADER)])
    if len(header) == length and _PLAIN.fullmatch(header):
        return
    try:
        literal = ast.literal_eval(header.decode("latin-1").strip())
        objects = _has_objects(literal["descr"])
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise ObjectError("The array's NPY header cannot be read; send what numpy.save writes.") from error
    if objects:
        raise ObjectError("The array holds pickled Python objects; send arrays of numbers, booleans or strings.")


def _has_objects(descr: Any) -> bool:
    """Whether a dtype description, simple or structured, contains the object type."""
    if isinstance(descr, str):
        return descr.lstrip("<>|=").startswith("O")
    if isinstance(descr, tuple):  # a sub-array: (base, shape)
        return _has_objects(descr[0])
    return any(_has_objects(entry[1]) for entry in descr)
