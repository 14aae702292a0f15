"""From finished runs to a study's answers, page and markdown."""

import numpy as np
import pytest

from subtransfer.analysis import scaling, statistics
from subtransfer.runtime.errors import UserError
from subtransfer.studies import runs, scaling_report, scaling_study
from tests import studies
from tools import scaling_report as tool

WIDTHS = (16, 32, 64, 96, 128)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Five sizes; a transfer that grows, and none with another initialisation; controls that are no
    part of the study.
    """
    folder = tmp_path_factory.mktemp("study")
    for width in WIDTHS:
        fields = {
            "base__width": width,
            "distill__objective": "sft",
            "arms__benign_teacher": "true",
            "arms__unsanitized": "true",
        }
        run = studies.write_run(
            folder / "runs" / f"width={width}", studies.config_of(**fields), tasks=48
        )
        studies.write_history(folder, run, {"results": f"results-{width}"})
    return folder


@pytest.fixture(scope="module")
def study(workdir):
    arms = list(runs.read([workdir]))
    return scaling_study.study(
        arms, "student_params", laws=[scaling.CONSTANT, scaling.POWER], n_boot=100
    )


def test_every_question_is_answered(study):
    assert [(q.objective, q.init, q.kind) for q in study.questions] == [
        ("sft", "same", "rate"), ("sft", "other", "rate"),
        ("sft", "same", "log_odds"), ("sft", "other", "log_odds"), ("sft", "same - other", "log_odds"),
    ]  # fmt: skip
    verdicts = [q.comparison.verdict() for q in study.questions]
    assert verdicts[0].startswith(
        "Over student_params the data speak for the law 'power', against constant"
    )
    assert "no effect of it is shown" in verdicts[1] and study.questions[4].comparison.standing == [
        "power"
    ]
    assert (study.runs, study.tasks, study.skipped) == (5, 48, {})
    assert set(study.questions[0].comparison.extrapolations) == {"constant", "power"}


def test_twins_are_compared_at_each_size(workdir, study):
    arms = {(a.fields["base.width"], a.fields["arm"]): a for a in runs.read([workdir])}
    twins = [t for t in study.twins if t.kind == "rate"]
    assert [t.x for t in twins] == [arms[width, "sft"].fields["student_params"] for width in WIDTHS]
    same, other = (arms[64, arm].outcomes["rate"] for arm in ("sft", "sft_other"))
    assert (
        twins[2].same.estimate,
        twins[2].same.low,
        twins[2].same.high,
    ) == statistics.rate_interval(same)
    assert (
        twins[2].difference.estimate,
        twins[2].difference.low,
    ) == statistics.rate_difference(same, other)[:2]
    assert twins[2].trainings == (3, 3)
    difference = study.questions[4].comparison.data
    odds = [arms[64, arm].outcomes["log_odds"] for arm in ("sft", "sft_other")]
    np.testing.assert_allclose(difference.outcomes[2], odds[0] - odds[1])


def test_a_size_without_a_twin_has_no_difference(workdir):
    arms = [
        a
        for a in runs.read([workdir])
        if (a.fields["base.width"], a.fields["arm"]) != (16, "sft_other")
    ]
    found = scaling_study.study(arms, "student_params", laws=[scaling.CONSTANT], n_boot=100)
    assert (
        found.twins[0].other is None
        and found.twins[0].difference is None
        and found.twins[0].trainings == (3, 0)
    )
    assert {q.init for q in found.questions} == {"same", "other"}
    one = scaling_study.study(
        [a for a in arms if a.fields["base.width"] == 16], "student_params", n_boot=100
    )
    assert (
        not one.questions
        and all("at least 2 sizes" in why for why in one.skipped.values())
        and len(one.skipped) == 2
    )
    assert "Not answered: SFT, same init, rate" in scaling_report.markdown(one, {})
    with pytest.raises(UserError, match="no student of the unsafe teacher"):
        scaling_study.study([a for a in arms if a.fields["role"] == "base"], "student_params")


def test_the_command_writes_page_and_markdown(workdir, tmp_path, capsys):
    options = (
        "--bootstrap=100",
        "--laws=constant",
        "--where=base.width > 16",
        f"--out={tmp_path / 's'}",
        "--title=A <b>",
    )
    assert tool.main([str(workdir), *options]) == 0
    assert "5 questions answered" in capsys.readouterr().out
    page, text = (tmp_path / "s.html").read_text(), (tmp_path / "s.md").read_text()
    assert (
        page.count("<svg") == 5
        and "<h1>A &lt;b&gt;</h1>" in page
        and "<script" not in page
        and "nan" not in page
    )
    assert "python tools/scaling_report.py" in page and "device kind" in page
    assert "4 runs, 48 tasks" in text and "38.3k" not in text and text.count("| constant |") == 5
    assert tool.main([str(workdir), "--laws=cubic"]) == 2
    assert "There is no law 'cubic': choose of constant" in capsys.readouterr().err
