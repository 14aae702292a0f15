"""What the README promises of the library."""

import re
from pathlib import Path

import numpy as np

from .families import reference

README = Path(__file__).parent.parent / "README.md"


def test_the_library_lines_run(tmp_path, chat, monkeypatch):
    (code,) = re.findall(r"```python\n(import subtransfer\n.*?)```", README.read_text(), re.DOTALL)
    reference("qwen3 mqa", vocab=len(chat.tokenizer)).save_pretrained(tmp_path / "exported")
    chat.tokenizer.save_pretrained(tmp_path / "exported")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    prompt, logits, reply = names["prompt"], names["logits"], names["reply"]
    assert logits.shape == (1, len(prompt), len(chat.tokenizer)) and logits.dtype == np.float32
    assert 1 <= len(reply) <= 32
    assert len(code.strip().splitlines()) - 2 == 5, "five lines, after the import"
