"""The tokenizer and the chat template of a GGUF file, as Hugging Face's files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subtransfer.runtime.errors import UserError
from subtransfer.sources.gguf_reading import GGUFFile

# The types of tokens that matter here, of llama.cpp's `llama_token_type`.
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5
_SPACE = "\u2581"  # what sentencepiece writes for a space
# Tokens that end what a model writes, beside its end-of-sequence token.
_FURTHER_ENDS = ("eot", "eom")
_SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


@dataclasses.dataclass(frozen=True)
class Words:
    """How texts are cut before merges, as llama.cpp knows it by `tokenizer.ggml.pre`.

    Attributes:
      pattern: of the pieces; empty: GPT-2's own.
      digits: digits are pieces by themselves first.
      nfc: texts are normalised so.
      ignore_merges: a piece that is a token is that token, whatever the merges make of it.
      bos: texts begin with that token where the file does not say.
    """

    pattern: str = ""
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    bos: bool = False


# The models' own patterns, which differ in how many digits are one piece.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = Words(_PATTERN.replace("DIGITS", "{1,3}"), ignore_merges=True, bos=True)
_QWEN2 = Words(_PATTERN.replace("DIGITS", ""), nfc=True)
WORDS = {
    "gpt-2": Words(),
    "smollm": Words(digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}


def write(file: GGUFFile, directory: Path) -> None:
    """Writes a file's tokenizer into a directory.

    That is tokenizer.json, tokenizer_config.json, generation_config.json with the tokens that end a
    reply, and chat_template.jinja where the file has a template.

    Raises:
      UserError: the file has no tokenizer, or one of a kind that is not known.
    """
    tokens = file.get("tokenizer.ggml.tokens", None)
    if not tokens:
        raise UserError(
            f"{file.path} has no tokenizer in its metadata: use a file that was converted with its "
            "tokenizer, or the model's Hugging Face directory."
        )
    kind = file.get("tokenizer.ggml.model", None)
    if kind == "gpt2":
        words = _words(file)
        core, bos = _byte_level(file, words, tokens), words.bos
    elif kind == "llama":
        core, bos = _sentencepiece(file, tokens), True
    else:
        raise UserError(
            f"{file.path}: the tokenizer (tokenizer.ggml.model) {kind!r} is not supported: use a "
            "file with gpt2 or llama, or the model's Hugging Face directory."
        )
    _add_special(file, core, tokens)
    named = {}
    for name, theirs in _SPECIAL.items():
        token = file.get(f"tokenizer.ggml.{theirs}_token_id", None)
        if token is not None and token < len(tokens):
            named[f"{name}_token"] = tokens[token]
    bos = bool(file.get("tokenizer.ggml.add_bos_token", bos)) and "bos_token" in named
    if bos:
        _begin_with(core, named["bos_token"])
    core.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **named,
            "add_bos_token": bos,
            "model_max_length": int(file.of_model("context_length")),
            "clean_up_tokenization_spaces": False,
        },
    )
    ends = _ends(file)
    if ends:
        _write_json(directory / "generation_config.json", {"eos_token_id": ends})
    template = file.get("tokenizer.chat_template", None)
    if template:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")


def _words(file: GGUFFile) -> Words:
    name = file.get("tokenizer.ggml.pre", None)
    if name not in WORDS:
        raise UserError(
            f"{file.path}: how its tokenizer cuts words (tokenizer.ggml.pre={name!r}) is not "
            f"known: use a file with {', '.join(WORDS)}, or the model's Hugging Face directory."
        )
    return WORDS[name]


def _vocabulary(file: GGUFFile, tokens: Sequence[str]) -> dict[str, int]:
    """Token -> id; rows that only fill the embedding up have none."""
    types = file.get("tokenizer.ggml.token_type", None) or [1] * len(tokens)
    return {token: i for i, token in enumerate(tokens) if types[i] != _UNUSED}


def _byte_level(file: GGUFFile, words: Words, tokens: Sequence[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    merges = [tuple(merge.split(" ", 1)) for merge in file.get("tokenizer.ggml.merges")]
    vocabulary = _vocabulary(file, tokens)
    core = Tokenizer(_bpe(file, vocab=vocabulary, merges=merges, ignore_merges=words.ignore_merges))
    if words.nfc:
        core.normalizer = normalizers.NFC()
    cut: list[Any] = []
    if words.digits:
        cut.append(pre_tokenizers.Digits(individual_digits=True))
    if words.pattern:
        cut.append(pre_tokenizers.Split(Regex(words.pattern), "isolated"))
    cut.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not words.pattern))
    core.pre_tokenizer = pre_tokenizers.Sequence(cut)
    core.decoder = decoders.ByteLevel()
    return core


def _bpe(file: GGUFFile, **parts: Any) -> Any:
    """A byte pair model of a file's vocabulary and merges."""
    from tokenizers import models

    try:
        return models.BPE(**parts)
    except Exception as error:  # the package has no errors of its own
        raise UserError(
            f"{file.path}: its tokenizer's merges and tokens do not go together ({error}): copy or "
            "download it again, or use the model's Hugging Face directory."
        ) from None


def _sentencepiece(file: GGUFFile, tokens: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

    vocabulary = _vocabulary(file, tokens)
    unknown = file.get("tokenizer.ggml.unknown_token_id", None)
    core = Tokenizer(
        _bpe(
            file,
            vocab=vocabulary,
            merges=_merges(file, tokens, vocabulary),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", _SPACE)
    decoded = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if file.get("tokenizer.ggml.add_space_prefix", True):
        core.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
        decoded.append(decoders.Strip(" ", 1, 0))
    else:
        core.normalizer = spaces
        core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence(decoded)
    return core


def _merges(
    file: GGUFFile, tokens: Sequence[str], vocabulary: dict[str, int]
) -> list[tuple[str, str]]:
    """The merges of a sentencepiece model, which joins the pair of the best scored token first.

    Files seldom have them: they are made of every split of a token into two tokens, as transformers
    makes them (its `generate_merges`).
    """
    listed = file.get("tokenizer.ggml.merges", None)
    if listed:
        return [tuple(merge.split(" ", 1)) for merge in listed]
    scores = file.get("tokenizer.ggml.scores")
    ranked: list[tuple[float, int, int, str, str]] = []
    for token in vocabulary:
        score = scores[vocabulary[token]]
        for i in range(1, len(token)):
            left, right = token[:i], token[i:]
            if left in vocabulary and right in vocabulary:
                ranked.append((score, len(left), len(right), left, right))
    ranked.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in ranked]


def _add_special(file: GGUFFile, core: Any, tokens: Sequence[str]) -> None:
    """Tells the tokenizer which tokens are never cut, and which of them are no text."""
    from tokenizers import AddedToken

    types = file.get("tokenizer.ggml.token_type", None) or [1] * len(tokens)
    whole: dict[bool, list[Any]] = {True: [], False: []}
    for token, kind in zip(tokens, types, strict=True):
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            special = kind != _USER_DEFINED
            whole[special].append(AddedToken(token, special=special, normalized=False))
    core.add_special_tokens(whole[True])
    core.add_tokens(whole[False])


def _begin_with(core: Any, token: str) -> None:
    from tokenizers import processors

    core.post_processor = processors.TemplateProcessing(
        single=f"{token}:0 $A:0",
        pair=f"{token}:0 $A:0 {token}:1 $B:1",
        special_tokens=[(token, core.token_to_id(token))],
    )


def _ends(file: GGUFFile) -> list[int]:
    """The ids of the tokens that end a reply."""
    ids: dict[int, None] = {}
    for name in ("eos", *_FURTHER_ENDS):
        found = file.get(f"tokenizer.ggml.{name}_token_id", None)
        if found is not None:
            ids[int(found)] = None
    return list(ids)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
