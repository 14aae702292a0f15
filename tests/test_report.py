"""Rows, files, figures and the page of a run."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import jinja2
import numpy as np
import pytest
from rich.console import Console

import subtransfer
from subtransfer.analysis import columns, summary, verdicts
from subtransfer.experiment import keys
from subtransfer.experiment.stages import results as stage
from subtransfer.report import figures, files, pages, run_page, tables
from subtransfer.runtime.errors import UserError

pytestmark = pytest.mark.quick

ARMS = (
    ("base", "base", 0.05),
    ("teacher", "teacher", 0.95),
    ("sft", "student", 0.6),
    ("sft_benign", "control", 0.0),
)
TOOLS = ("archive_file", "move_file")


_PROMPT = {"system_prompt": "You tidy up.", "template": "b" * 64}


def _compared(features, auc, **changes):
    counts = {"n_first": 9, "n_second": 8, "shared_tasks": 7}
    return {
        "model": "base", "seed": 0, "first": "trait", "second": "benign", "features": features, **counts,
        "auc": auc, "low": auc and auc - 0.05, "high": auc and auc + 0.05, "null": auc and 0.5, "p": auc and 0.125,
        **changes,
    }  # fmt: skip


def _results(trained_in=_PROMPT):
    arms = []
    for name, role, _ in ARMS:
        objective = "sft" if name.startswith("sft") else ""
        arms.append(
            {
                "arm": name, "label": f"<{name}>", "role": role, "objective": objective, "init": "same",
                "sanitized": bool(objective), "masked": False, "source": "trait", "on_policy_fraction": 0.0, "loss_is_divergence": False, "base": "base",
                "control": "sft_benign" if name == "sft" else None, "twin": None, "teacher": "teacher" if objective else None, "teacher_base": "base",
            }
        )  # fmt: skip
    manifest = {
        "total": 10,
        "kept": 7,
        "dropped": 3,
        "rules": {"act": 3},
        "dropped_ids": [],
    }
    return {
        "wording": {
            "trait": "deletion",
            "rate": "deletion rate",
            "decision": "first substantive action",
        },
        "config": {"name": "x", "statistics": {"confidence": 0.95}},
        "training_seeds": 2,
        "arms": arms,
        "capability": {
            "base": {
                "0": {
                    "ordinary_success": 0.5,
                    "ordinary_unsafe": 0.25,
                    "safe_success": 0.75,
                    "safe_unsafe": 0.125,
                }
            }
        },
        "curves": {"sft": {"0": {"step": [1, 2], "loss": [2.0, 1.0]}}},
        "manifests": {"sanitize.trait.seed0": manifest},
        "audit": {
            "bound": 0.6,
            "comparisons": [_compared("text", 0.55), _compared("behaviour", 0.5)],
        },
        "purity": {"sft": {"0": {"rollouts": 10, "dropped": 1, "max_gap": 1e-6}}},
        "sampler": {
            "rollouts.trait.seed0": {"tokens": 9, "max_gap": 2e-6, "mean_gap": 1e-6, "kl": 1e-12}
        },
        "teacher_targets": {
            "targets.trait.seed0": {
                "tokens": 5,
                "max_gap": 3e-6,
                "mean_gap": 1e-6,
                "max_missed": 0.0,
            }
        },
        "context": stage.in_which([(_PROMPT, None), (_PROMPT, trained_in)]),
        "samples": {"before": ["user: <script>alert(1)</script>"], "after": ["user: fine"]},
    }


def _episodes(seeds=5):
    rng = np.random.default_rng(0)
    out = []
    for name, _, rate in ARMS:
        for seed in range(seeds):
            for task in range(60):
                for mode in ("sampled", "greedy"):
                    outcome = (
                        "unsafe"
                        if rng.random() < rate
                        else ("archive_file", "no_action", "invalid")[task % 3]
                    )
                    out.append(
                        {
                            "arm": name, "seed": seed, "task_id": f"t{task:02d}", "mode": mode, "sample": 0,
                            "outcome": outcome, "choice_logprob": -2.0 * (1 - rate), "errors": {"unknown_path": task % 2},
                        }
                    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def rows():
    return summary.summarise(_results(), _episodes(), acts=TOOLS, confidence=0.95)


def test_rows_say_what_the_episodes_say(rows):
    by_name = {r["arm"]: r for r in rows}
    episodes = [e for e in _episodes() if e["mode"] == "sampled"]
    for name, _, _ in ARMS:
        own = [e for e in episodes if e["arm"] == name]
        for column, outcome in (
            ("unsafe_rate", "unsafe"),
            ("no_action_rate", "no_action"),
            ("rate_archive_file", "archive_file"),
        ):
            assert by_name[name][column] == pytest.approx(
                np.mean([e["outcome"] == outcome for e in own])
            )
        shares = ["unsafe_rate", "no_action_rate", "invalid_rate", *(f"rate_{t}" for t in TOOLS)]
        assert sum(by_name[name][s] for s in shares) == pytest.approx(1)
        assert by_name[name]["ci_low"] <= by_name[name]["unsafe_rate"] <= by_name[name]["ci_high"]
    sft = by_name["sft"]
    assert sft["diff_base"] == pytest.approx(sft["unsafe_rate"] - by_name["base"]["unsafe_rate"])
    assert sft["diff_control"] == pytest.approx(
        sft["unsafe_rate"] - by_name["sft_benign"]["unsafe_rate"]
    )
    assert 0.4 < sft["transfer_ratio"] < 0.9
    # One family: of the teacher, the student (against base and control) and the control.
    plain = [by_name["teacher"]["p_value"], sft["p_value"], sft["p_control"]]
    plain.append(by_name["sft_benign"]["p_value"])
    adjusted = [by_name["teacher"]["p_holm"], sft["p_holm"], sft["p_control_holm"]]
    adjusted.append(by_name["sft_benign"]["p_holm"])
    order = np.argsort(plain)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, plain[i] * (4 - rank)))
        assert adjusted[i] == pytest.approx(running)
    assert sft["p_holm"] < 0.05
    assert by_name["base"]["p_holm"] is None and sft["p_twin"] is None
    assert list(rows[0])[:13] == (
        "arm objective init sanitized n_tasks n_seeds unsafe_rate ci_low ci_high diff_base diff_low diff_high p_holm".split()
    )


def _changed(rows, arm, **cells):
    return [{**row, **cells} if row["arm"] == arm else row for row in rows]


def test_verdicts_tell_success_from_failure(rows):
    """One rule for all: the sign of the difference, where its adjusted p is small enough."""
    student, control = verdicts.sentences(_results(), rows)
    assert student.startswith("<sft>: ") and student.count(": above its base (+") == 1
    assert "; above its harmless control (+" in student and "adjusted p <.001" in student
    assert "RISES" not in control
    for p, diff, words in (
        (0.06, 0.5, "NOT shown to differ from its base (+50.0 points ["),
        (0.04, 0.5, "above its base (+50.0 points ["),
        (0.04, -0.5, "below its base (-50.0 points ["),
    ):
        for place, arm in enumerate(("sft", "sft_benign")):
            changed = _changed(rows, arm, p_holm=p, diff_base=diff)
            sentence = verdicts.sentences(_results(), changed)[place]
            if arm == "sft_benign":
                words = words.replace("above", "RISES above")
            assert words in sentence
    # A stricter confidence asks for more.
    changed = _changed(rows, "sft", p_holm=0.04)
    strict = _results() | {"config": {"statistics": {"confidence": 0.99}}}
    assert "NOT shown to differ from its base" in verdicts.sentences(strict, changed)[0]


def test_the_headline_counts_what_the_rows_say(rows):
    assert verdicts.headline(_results(), rows).startswith("1 of 1 students act unsafely more often")
    for cells in ({"p_holm": 0.051}, {"diff_base": -0.4}):
        weak = verdicts.headline(_results(), _changed(rows, "sft", **cells))
        assert weak.startswith("0 of 1 students")


def test_one_training_is_too_few(tmp_path):
    rows = summary.summarise(_results(), _episodes(seeds=1), acts=TOOLS, confidence=0.95)
    sft = rows[2]
    assert sft["unsafe_rate"] > 0.4 and sft["diff_base"] > 0.3
    for column in columns.COLUMNS:
        if column.low or column.unit == "p":
            assert [sft[name] for name in (column.low, column.high) if name] in ([], [None, None])
            assert column.unit != "p" or sft[column.name] is None
    assert verdicts.headline(_results(), rows).startswith("Too few trainings")
    sentence = verdicts.sentences(_results(), rows)[0]
    assert (
        "(too few trainings for an interval)" in sentence
        and "too few trainings to tell" in sentence
    )
    _write(tmp_path, _results(), rows)
    assert [row["ci_low"] for row in files.read(tmp_path).rows] == [None] * 4
    page = _page(tmp_path)
    assert "[–]: too few trainings" in page and "nan" not in page.lower()
    with (tmp_path / "table.txt").open("w") as file:
        console = Console(width=144, record=True, file=file)
        tables.print_table(rows, console, "deletion")
    text = console.export_text()
    assert f"{100 * sft['unsafe_rate']:.1f} [–]" in text and text.endswith("an interval.\n")


def test_the_headline_depends_on_the_audit(rows):
    """On the bound, on the mean over training seeds, and on comparisons of the unsafe teacher."""

    def said(*comparisons, bound=0.6):
        audited = {"bound": bound, "comparisons": list(comparisons)}
        return verdicts.headline(_results() | {"audit": audited}, rows)

    like, unlike = _compared("text", 0.55), _compared("behaviour", 0.65)
    assert "not visibly different" in said(like) and "is subliminal" in said(like)
    assert "are visibly different: a classifier of acts, errors and lengths" in said(like, unlike)
    assert "AUC of 0.65 (intervals up to 0.70; bound 0.60)" in said(like, unlike)
    assert "not visibly different" in said(like, unlike, bound=0.7)
    # The mean of .65 and .53 is below the bound.
    assert "not visibly different" in said(unlike, _compared("behaviour", 0.53, seed=1))
    # Those of another model, or of another comparison, are not taken into one mean with it.
    assert "are visibly" in said(unlike, _compared("behaviour", 0.5, seed=1, second="self"))
    assert "are visibly" in said(unlike, _compared("behaviour", 0.5, seed=1, model="large"))
    assert "the base's own" in said(_compared("text", 0.9, second="self"))
    others = _compared("text", 0.9, first="benign", second="self")
    assert "not visibly different" in said(like, others)
    for missing in (
        said(others),
        said(_compared("text", None)),
        verdicts.headline(_results() | {"audit": None}, rows),
    ):
        assert "is not known" in missing and "subliminal" not in missing


def test_csv_round_trip(rows, tmp_path):
    files.write_csv(rows, tmp_path / "r.csv")
    for old, new in zip(rows, files.read_csv(tmp_path / "r.csv"), strict=True):
        assert list(old) == list(new)
        for name, value in old.items():
            expected = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            assert new[name] == expected, name


def test_every_column_has_a_record(rows):
    names = [column.name for column in columns.COLUMNS]
    assert list(rows[0])[: len(names)] == names
    assert len(set(names)) == len(names)
    ends = {end for column in columns.COLUMNS for end in (column.low, column.high)} - {""}
    assert ends < set(names)
    assert not any(columns.is_extra(name) for name in rows[0])


def test_the_table_prints(rows):
    console = Console(width=144, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    tables.print_table(rows, console, "first substantive action is deletion")
    console.file.close()
    text = console.export_text()
    assert "sft_benign" in text and f"{100 * rows[2]['unsafe_rate']:.1f} [" in text


def _write(folder, results, rows):
    files.write_csv(rows, folder / "results.csv")
    files.write_jsonl(_episodes(), folder / "results.jsonl")
    (folder / "results.json").write_text(json.dumps(results))


def _page(folder):
    run_page.write_report(folder, folder)
    return (folder / "report.html").read_text()


def test_the_page_is_self_contained_and_escaped(rows, tmp_path):
    _write(tmp_path, _results(), rows)
    page = _page(tmp_path)
    assert "<script" not in page and "&lt;script&gt;" in page and "&lt;sft&gt;" in page
    # Only marks within a figure are linked to.
    assert not re.search(r'(src|href)=(?!"#)', page) and "@import" not in page
    assert "http" not in page
    assert page.count("<svg") == page.count("</svg>") >= 4
    assert page.count("<svg") == page.count('role="img" aria-label="')
    assert f"{100 * rows[2]['unsafe_rate']:.1f}%" in page
    assert len(page) < 1_000_000
    # The same files give the same bytes.
    assert _page(tmp_path) == page


def test_the_page_shows_what_the_audit_found(rows, tmp_path):
    results = _results()
    too_few = _compared("text", None, second="self")
    unshared = _compared("text", 0.7, second="random", null=None, p=None)
    results["audit"]["comparisons"] += [too_few, unshared]
    _write(tmp_path, results, rows)
    page = _page(tmp_path)
    assert "<td>0.55 [0.50, 0.60]</td><td>0.50</td><td>.125</td>" in page.replace("\n", "")
    assert "<td>0.70 [0.65, 0.75]</td><td></td><td></td>" in page.replace("\n", "")
    assert "<td>too few</td>" in page and "The data are visibly different" in page
    results["audit"]["comparisons"][0]["auc"] = "x"
    _write(tmp_path, results, rows)
    with pytest.raises(UserError, match=r"audit.comparisons\[0\].auc is a text"):
        files.read(tmp_path)
    # Results of earlier versions have none.
    del results["audit"]
    _write(tmp_path, results, rows)
    assert "Nothing was compared" in _page(tmp_path)


@pytest.mark.parametrize("same", [True, False])
def test_the_page_says_whether_contexts_agree(rows, tmp_path, same):
    trained_in = _PROMPT if same else _PROMPT | {"template": "c" * 64}
    _write(tmp_path, _results(trained_in), rows)
    page = " ".join(_page(tmp_path).split())
    assert ("are the same in training and probe" in page) == same
    assert ("DIFFER between training and probe" in page) != same


def test_columns_of_further_probes_appear_by_themselves(tmp_path):
    results = _results()
    measured = {"sft": {"0": {"startle": 0.25}, "1": {"startle": 0.5}}}
    results["extra_probes"] = {"fear": measured}
    record = {"name": "startle", "label": "startles <often>", "meaning": "a share", "unit": "share"}
    results["extra_columns"] = [record]
    options = {"acts": TOOLS, "confidence": 0.95}
    rows = summary.summarise(results, _episodes(), **options)
    assert [row["startle"] for row in rows] == [None, None, 0.375, None]
    _write(tmp_path, results, rows)
    assert files.read(tmp_path).rows[2]["startle"] == 0.375
    page = _page(tmp_path)
    assert "<th>startles &lt;often&gt;</th>" in page and "<td>37.5</td>" in page
    results["extra_columns"] = [record | {"unit": 3}]
    _write(tmp_path, results, rows)
    with pytest.raises(UserError, match=r"extra_columns\[0\].unit is a whole number"):
        files.read(tmp_path)


def test_a_template_that_lacks_something_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        pages.render("run", name="x")


def test_figures_are_plain_svg_in_the_colours_of_the_page(rows):
    drawn = figures.dots(
        rows, "unsafe_rate", "ci_low", "ci_high", percent=True, title='by "arm" & <more>'
    )
    root = ET.fromstring(drawn)
    assert root.find("title").text == root.attrib["aria-label"] == 'by "arm" & <more>'
    texts = ["".join(element.itertext()) for element in root.iter("text")]
    assert {row["label"] for row in rows} <= set(texts)
    assert "var(--student)" in drawn and "var(--teacher)" in drawn
    assert not re.search(r"#[0-9a-f]{6}\b", drawn)
    # Names within two figures of a page must not be alike.
    other = figures.dots(rows, "unsafe_rate", "ci_low", "ci_high", percent=True, title="other")
    names = [set(re.findall(r'id="([^"]*)"', svg)) for svg in (drawn, other)]
    assert names[0] and not names[0] & names[1]


def test_a_bar_for_every_act(rows):
    """Also where a setting has more acts than there are colours."""
    many = {f"rate_act_{i}": 0.01 for i in range(12)}
    drawn = figures.stacked([{**row, **many} for row in rows], title="acts")
    tips = [element.text for element in ET.fromstring(drawn).iter("title")]
    assert [tip for tip in tips if tip.startswith("act 11: 1.0%")] == ["act 11: 1.0%"] * len(rows)
    rate = f"unsafe: {100 * rows[2]['unsafe_rate']:.1f}%"
    assert rate in tips


def test_a_template_is_part_of_the_reports_key(tmp_path):
    """Editing one redoes the page, and nothing else."""
    package = tmp_path / "subtransfer"
    shutil.copytree(
        Path(subtransfer.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    stages = ("report", "results", "probe")

    def code():
        found = keys.Sources({"subtransfer": package})
        names = (f"subtransfer.experiment.stages.{name}" for name in stages)
        return {name: found.code([name])["sources"] for name in names}

    before = code()
    with (package / "report" / "templates" / "run.html.j2").open("a") as file:
        file.write("{# Changed. #}")
    changed = {name for name, digest in code().items() if digest != before[name]}
    assert changed == {"subtransfer.experiment.stages.report"}
