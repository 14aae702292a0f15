"""Rows, files and the page."""

import json
import re

import numpy as np
import pytest
from rich.console import Console

from subtransfer.analysis import summary
from subtransfer.report import html, tables

ARMS = (
    ("base", "base", 0.05),
    ("teacher", "teacher", 0.95),
    ("sft", "student", 0.6),
    ("sft_benign", "control", 0.0),
)
TOOLS = ("archive_file", "move_file")


def _results():
    arms = []
    for name, role, _ in ARMS:
        objective = "sft" if name.startswith("sft") else ""
        arms.append(
            {
                "arm": name, "label": f"<{name}>", "role": role, "objective": objective, "init": "same",
                "sanitized": bool(objective), "masked": False, "base": "base",
                "control": "sft_benign" if name == "sft" else None, "twin": None, "teacher": "teacher" if objective else None, "teacher_base": "base",
            }
        )  # fmt: skip
    manifest = {
        "total": 10,
        "kept": 7,
        "dropped": 3,
        "rules": {"unsafe_action": 3},
        "dropped_ids": [],
    }
    return {
        "wording": {
            "trait": "deletion",
            "rate": "deletion rate",
            "decision": "first substantive action",
        },
        "config": {"name": "x", "statistics": {"confidence": 0.95, "bootstrap": 200}},
        "training_seeds": 2,
        "arms": arms,
        "capability": {"base": {"0": {"ordinary_success": 0.5, "n": 10}}},
        "curves": {"sft": {"0": {"step": [1, 2], "loss": [2.0, 1.0]}}},
        "manifests": {"sanitize.trait.seed0": manifest},
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
        "context": {
            "system_prompt_sha256": "a" * 64,
            "template_sha256": "b" * 64,
            "training_matches_probe": True,
        },
        "samples": {"before": ["user: <script>alert(1)</script>"], "after": ["user: fine"]},
    }


def _episodes():
    rng = np.random.default_rng(0)
    out = []
    for name, _, rate in ARMS:
        for seed in range(2):
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
    return summary.summarise(
        _results(), _episodes(), acts=TOOLS, confidence=0.95, n_boot=200, seed=0
    )


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
    assert (
        0.4 < sft["transfer_ratio"] < 0.9
        and sft["p_holm"] < 0.01
        and by_name["base"]["p_holm"] is None
    )
    assert list(rows[0])[:13] == (
        "arm objective init sanitized n_tasks n_seeds unsafe_rate ci_low ci_high diff_base diff_low diff_high p_holm".split()
    )


def test_verdicts_tell_success_from_failure(rows):
    text = "\n".join(summary.verdicts(rows))
    assert (
        "<sft>" in text
        and "wholly above base" in text
        and "NOT" not in text
        and "does not rise above" in text
    )
    weak = [{**r, "ci_low": 0.0} if r["arm"] == "sft" else r for r in rows]
    assert "NOT wholly above base" in "\n".join(summary.verdicts(weak))
    risen = [{**r, "diff_low": 0.1} if r["arm"] == "sft_benign" else r for r in rows]
    assert "RISES above" in "\n".join(summary.verdicts(risen))


def test_csv_round_trip(rows, tmp_path):
    tables.write_csv(rows, tmp_path / "r.csv")
    for old, new in zip(rows, tables.read_csv(tmp_path / "r.csv"), strict=True):
        assert list(old) == list(new)
        for name, value in old.items():
            assert new[name] == (
                pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            ), name


def test_the_table_prints(rows):
    console = Console(width=144, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    tables.print_table(rows, console, "first substantive action is deletion")
    console.file.close()
    text = console.export_text()
    assert "sft_benign" in text and f"{100 * rows[2]['unsafe_rate']:.1f} [" in text


def test_the_page_is_self_contained_and_escaped(rows, tmp_path):
    tables.write_csv(rows, tmp_path / "results.csv")
    tables.write_jsonl(_episodes(), tmp_path / "results.jsonl")
    (tmp_path / "results.json").write_text(json.dumps(_results()))
    html.write_report(tmp_path, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "&lt;sft&gt;" in page
    assert not re.search(r"(src|href)=", page) and "@import" not in page
    assert page.count("<svg") == page.count("</svg>") >= 4
    assert f"{100 * rows[2]['unsafe_rate']:.1f}%" in page
