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


def test_the_list_of_files_is_true():
    (tree,) = re.findall(
        r"## The files\n.*?```\nsubtransfer/\n(.*?)```", README.read_text(), re.DOTALL
    )
    listed, room = {}, None
    for line in tree.splitlines():
        if found := re.match(r"  (?:  )?(\w+)/ +(.*)", line):
            room = found[1]
            listed[room] = found[2].split() if room == "stages" else []
        elif re.match(r" {18}\w", line):
            listed[room] += line.split()
    package = README.parent / "subtransfer"
    there = {}
    for path in package.rglob("*.py"):
        if path.stem != "__init__" and path.parent != package:
            there.setdefault(path.parent.name, set()).add(path.stem)
    assert {name: set(modules) for name, modules in listed.items()} == there
    for name in re.findall(r"^(\w+)/", tree, re.MULTILINE):
        assert (README.parent / name).is_dir(), name


def test_links_of_the_documents_lead_somewhere():
    documents = [README, *README.parent.glob("*.md"), *README.parent.glob("docs/*.md")]
    documents += README.parent.glob("shellworld/**/*.md")
    for document in documents:
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name} links to {link}"
