"""The tool that looks at a model's directory before a run."""

import json
import types

import pytest

from tools import check_model

from . import templates
from .families import reference

FAMILIES = {
    "llama3": "llama odd heads, own head width",
    "qwen3": "qwen3 gqa, wide heads",
    "gemma3": "gemma3 window 4",
}


@pytest.fixture
def directory(tmp_path, setting, monkeypatch):
    """Makes a directory of a family, with more rows than tokens."""
    monkeypatch.setattr(check_model, "EPISODES", 5)
    texts = [json.dumps(tool, indent=indent) for tool in setting.tools for indent in (None, 4)]

    def make(family, template=None):
        tokenizer = templates.tokenizer(family, texts * 5, vocab=600)
        reference(FAMILIES[family], vocab=len(tokenizer) + 5).save_pretrained(tmp_path)
        if template is not None:
            tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path)
        ends = tokenizer.convert_tokens_to_ids(templates.ENDS[family])
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        return tmp_path, tokenizer

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_what_holds_of_a_family(directory, family, capsys):
    path, tokenizer = directory(family)
    assert check_model.main([str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["refused"] == []
    assert found["geometry"]["positions"] == 4096
    assert found["vocabulary"]["rows_without_token"] == 5
    assert found["vocabulary"]["tokens"] == len(tokenizer)
    assert found["weights"]["dtypes"] == ["float32"]
    size = (path / "model.safetensors").stat().st_size
    assert found["weights"]["bytes"] == size
    template = found["template"]
    assert set(template["stop_tokens"]) == set(templates.ENDS[family])
    words = "<think>\nI look.\n</think>\n\n" if family == "qwen3" else "I look.\n"
    name = "list_directory"
    call = {
        "llama3": f'{{"name": "{name}", "parameters": {{"path": "notes.txt"}}}}',
        "qwen3": f'<tool_call>\n{{"name": "{name}", "arguments": {{"path": "notes.txt"}}}}\n</tool_call>',
        "gemma3": f'{{"name": "{name}", "parameters": {{"path": "notes.txt"}}}}',
    }[family]
    assert (template["turn"], template["turn_without_words"]) == (words + call, call)
    printed = "described in the system prompt" if family == "gemma3" else "printed by the template"
    assert template["tools"] == printed
    unsafe = found["unsafe_tokens"]
    assert unsafe["share"] == unsafe["count"] / len(tokenizer)
    assert 0 < found["lengths"]["shared_prompt"] < found["lengths"]["longest_scripted_episode"]


def test_thoughts_that_can_be_set(directory, setting):
    path, _ = directory("qwen3", templates.QWEN3_HYBRID)
    said = check_model.inspect(path, setting)["template"]["enable_thinking"]
    assert said == {
        "true": "chat.enable_thinking=true can be set",
        "false": "chat.enable_thinking=false can be set",
    }


def _shorter(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))


REFUSED = {
    "no template": (lambda p: (p / "chat_template.jinja").unlink(), "no chat template"),
    "calls": (lambda p: (p / "chat_template.jinja").write_text(templates.GRANITE), "leaves out their calls"),
    "weights": (lambda p: (p / "model.safetensors").unlink(), "model.safetensors is missing"),
    "family": (lambda p: (p / "config.json").write_text('{"model_type": "gpt2"}'), "'gpt2' is not supported"),
    "no config": (lambda p: (p / "config.json").unlink(), "has no config.json"),
    "context": (_shorter, "made for 64 positions"),
    "ends": (lambda p: (p / "generation_config.json").write_text('{"eos_token_id": "x"}'), "eos_token_id"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_refused_is_said_with_the_rest(directory, case, capsys):
    change, sentence = REFUSED[case]
    path, _ = directory("qwen3")
    change(path)
    assert check_model.main([str(path)]) == 1
    out = capsys.readouterr().out
    refused = [line for line in out.splitlines() if line.startswith("refused")]
    assert len(refused) == 1 and sentence in refused[0]
    assert "would be refused" in out.splitlines()[-1]
    # What could be read is shown all the same.
    assert ("stop tokens" in out) == (case not in ("no template", "calls", "ends"))


def test_a_tokenizers_directory_and_mistakes(directory, capsys):
    path, _ = directory("llama3")
    for name in ("config.json", "model.safetensors"):
        (path / name).unlink()
    assert check_model.main([str(path), "--setting=bash"]) == 0
    out = capsys.readouterr().out
    assert "as far as a tokenizer alone shows" in out and '"name": "bash"' in out
    for arguments, sentence in (
        ([str(path / "nothing")], "there is no directory"),
        ([str(path), "--setting=nothing"], "There is no setting 'nothing'"),
    ):
        assert check_model.main(arguments) == 2
        assert sentence in capsys.readouterr().err


def test_logits_are_compared_with_those_of_transformers(directory, capsys, monkeypatch):
    path, _ = directory("qwen3")
    assert check_model.main([str(path), "--json", "--logits"]) == 0
    found = json.loads(capsys.readouterr().out)["logits"]
    assert found["positions"] == check_model.TEXTS * check_model.TOKENS
    assert found["largest_difference"] < 1e-4 < 0.1 < found["largest_logit"]
    load = check_model.load_policy

    def scaled(where):
        return types.SimpleNamespace(logits=lambda tokens: 1.01 * load(where).logits(tokens))

    monkeypatch.setattr(check_model, "load_policy", scaled)
    assert check_model.main([str(path), "--logits"]) == 1
    assert "Logits differ from transformers' by up to" in capsys.readouterr().out
