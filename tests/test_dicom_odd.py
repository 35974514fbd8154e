"""Headers and files that are odd, and can be read all the same.

The made-up head and its helpers are those of `test_dicom_meaning`.
"""

from __future__ import annotations

import pytest
from test_dicom_meaning import assert_head, read, write


def replace_in(path, old, new):
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize("number", ["nan ", "inf ", "-inf"])
@pytest.mark.parametrize("name", ["SliceThickness", "KVP", "SpacingBetweenSlices", "EchoTime"])
def test_a_number_that_is_none_in_some_slices_is_as_if_it_were_absent(tmp_path, name, number):
    write(tmp_path, lambda dataset, k: setattr(dataset, name, "7.77"))
    for path in sorted(tmp_path.iterdir())[::2]:
        replace_in(path, b"DS\x04\x007.77", b"DS\x04\x00" + number.encode())
    assert_head(read(tmp_path))
