"""The tool that lets other environments read exports."""

import dataclasses
import sys

import numpy as np
import pytest

from subtransfer.runtime.errors import UserError
from tools import check_export

CASE = check_export.Case("out", "", 0, np.ones((1, 2, 3), np.float32), [1, 2], [5], "<u>")
SAME = {"ends": [1, 2], "ids": [5], "rendered": "<u>"}


@pytest.mark.parametrize(
    ("found", "logits", "said"),
    [
        (SAME, CASE.logits, None),
        (SAME, CASE.logits + 0.01, "logits differ by 0.01"),
        (SAME, CASE.logits * np.nan, "logits differ by nan"),
        (SAME | {"ends": [1]}, CASE.logits, "stop tokens"),
        (SAME | {"ids": [5, 6]}, CASE.logits, "tokens"),
        (SAME | {"rendered": "<v>"}, CASE.logits, "chat template"),
        ({"error": "KeyError: 'llama'"}, None, "KeyError: 'llama'"),
    ],
)
def test_every_difference_is_said(found, logits, said):
    differences = check_export.differences(CASE, found, logits)
    assert [said in text for text in differences] == ([True] if said else [])


def test_an_interpreter_without_transformers_is_named(tmp_path):
    cases = {"one": dataclasses.replace(CASE, directory=str(tmp_path))}
    with pytest.raises(UserError, match="--python=/no/python cannot be run"):
        check_export.read("/no/python", tmp_path, cases)
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho no module >&2\nexit 1\n")
    bare.chmod(0o755)
    with pytest.raises(UserError, match=r"could not read the exports \(no module\)"):
        check_export.read(str(bare), tmp_path, cases)


@pytest.mark.slow
def test_this_environment_reads_exports_of_every_kind_alike():
    names = ["gemma3 window 7, linear rope", "qwen2 gqa tied", check_export.MULTIMODAL]
    records = check_export.check([sys.executable], names)
    assert len(records) == 7 and [r["differences"] for r in records] == [[]] * 7
