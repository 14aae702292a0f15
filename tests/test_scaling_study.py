"""From finished runs to a study's answers, page and markdown."""

import numpy as np
import pytest

from subtransfer.analysis import crossed, scaling
from subtransfer.runtime.errors import UserError
from subtransfer.studies import runs, scaling_report, scaling_runs, scaling_study
from tests import studies
from tools import scaling_report as tool

WIDTHS = (16, 32, 64, 96, 128)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Five sizes of three crossed bases; a transfer that grows, and none between bases; controls
    that are no part of the study.
    """
    folder = tmp_path_factory.mktemp("study")
    for width in WIDTHS:
        fields = {
            "base__width": width,
            "num_bases": 3,
            "num_seeds": 1,
            "distill__objective": "sft",
            "arms__benign_teacher": "true",
        }
        run = studies.write_run(
            folder / "runs" / f"width={width}", studies.config_of(**fields), tasks=32
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
        ("sft", "same", "rate"), ("sft", "other", "rate"), ("sft", "same - other", "difference"),
        ("sft", "same", "log_odds"), ("sft", "other", "log_odds"), ("sft", "same - other", "log_odds"),
    ]  # fmt: skip
    verdicts = [q.comparison.verdict() for q in study.questions]
    for i in (0, 2, 5):
        assert verdicts[i].startswith(
            "Over student_params the data speak for the law 'power', against constant"
        )
    assert "no effect of it is shown" in verdicts[1]
    assert all("Power: a change of" in verdict for verdict in verdicts)
    counts = study.questions[2].comparison.data
    assert counts.num_bases.tolist() == [3] * 5 and counts.trainings.tolist() == [9] * 5
    assert (study.runs, study.tasks, study.skipped) == (5, 32, {})
    assert set(study.questions[0].comparison.extrapolations) == {"constant", "power"}


def _arms(workdir, width):
    return {a.fields["arm"]: a for a in runs.read([workdir]) if a.fields["base.width"] == width}


def test_twins_are_compared_at_each_size(workdir, study):
    """As a run's own analysis of its crossing does, and pseudo-values against leaving bases out."""
    twins = [t for t in study.twins if t.kind == "rate"]
    sizes = [_arms(workdir, width)["base0"].fields["student_params"] for width in WIDTHS]
    assert [t.x for t in twins] == sizes
    arms = _arms(workdir, 64)
    cells = np.array(
        [
            [arms[f"sft_base{i}_to_base{j}"].outcomes["rate"].mean(1) for j in range(3)]
            for i in range(3)
        ]
    )
    effect = crossed.effect(cells[:, :, None])
    found = twins[2]
    for shown, expected in (
        (found.same, effect.same),
        (found.other, effect.other),
        (found.difference, effect.interaction),
    ):
        assert (shown.estimate, shown.low, shown.high) == expected[:3]
    assert (found.pairs, found.trainings) == ((3, 6), (3, 6))
    interaction = study.questions[2].comparison.data
    assert interaction.means[2] == pytest.approx(effect.interaction.value)
    for base in range(3):
        left = np.delete(np.delete(cells, base, 0), base, 1).mean(-1)
        without = (np.trace(left) - left[0, 1] - left[1, 0]) / 2
        assert interaction.outcomes[2].mean(0)[base] == pytest.approx(
            3 * effect.interaction.value - 2 * without
        )


def test_a_size_without_a_twin_has_no_difference(workdir):
    arms = []
    for arm in runs.read([workdir]):
        if (arm.fields["base.width"], arm.fields["init"]) != (16, "other"):
            arms.append(arm)
    found = scaling_study.study(arms, "student_params", laws=[scaling.CONSTANT], n_boot=100)
    first = found.twins[0]
    assert first.other is None and first.difference is None
    assert (first.pairs, first.trainings) == ((3, 0), (3, 0))
    assert {q.init for q in found.questions} == {"same", "other"}
    one = scaling_study.study(
        [a for a in arms if a.fields["base.width"] == 16], "student_params", n_boot=100
    )
    assert (
        not one.questions
        and all("at least 2 sizes" in why for why in one.skipped.values())
        and len(one.skipped) == 2
    )
    assert "SFT, same initialisation, share of unsafe decisions: no verdict." in (
        scaling_report.markdown(one, {})
    )
    with pytest.raises(UserError, match="no student of the unsafe teacher"):
        scaling_study.study([a for a in arms if a.fields["role"] == "base"], "student_params")


def test_one_base_pair_a_size_is_shown_without_a_verdict(tmp_path):
    """Nothing is claimed of a law or a constant, in no place; the means are there."""
    for width in WIDTHS:
        config = studies.config_of(base__width=width, distill__objective="sft")
        studies.write_run(tmp_path / "runs" / f"width={width}", config, tasks=12)
    found = scaling_study.study(list(runs.read([tmp_path])), "student_params", n_boot=100)
    assert not found.questions and len(found.skipped) == 6
    assert all(
        "No law and no constant is claimed over student_params: 5 of 5 sizes have one base pair"
        in why
        for why in found.skipped.values()
    )
    twins = [t for t in found.twins if t.kind == "rate"]
    assert len(twins) == 5 and all(np.isnan(t.same.low) and t.pairs == (1, 1) for t in twins)
    page, text = scaling_report.page("One", found, {}), scaling_report.markdown(found, {})
    for shown in (page, text):
        assert shown.count("no verdict. No law and no constant is claimed") == 6
        assert "no effect" not in shown and "speak for" not in shown and "nan" not in shown


def test_pairs_that_overlap_are_refused(workdir):
    arms = [a for a in runs.read([workdir]) if a.fields["arm"] != "sft_base0_to_base1"]
    with pytest.raises(UserError, match="pairs of bases overlap and are no complete crossing"):
        scaling_runs.gather(arms, "student_params", objective="sft", init="other", source="trait")


def test_the_command_writes_page_and_markdown(workdir, tmp_path, capsys):
    options = (
        "--bootstrap=100",
        "--laws=constant",
        "--where=base.width > 16",
        f"--out={tmp_path / 's'}",
        "--title=A <b>",
    )
    assert tool.main([str(workdir), *options]) == 0
    assert "6 questions answered" in capsys.readouterr().out
    page, text = (tmp_path / "s.html").read_text(), (tmp_path / "s.md").read_text()
    assert (
        page.count("<svg") == 6
        and "<h1>A &lt;b&gt;</h1>" in page
        and "<script" not in page
        and "nan" not in page
    )
    assert "python tools/scaling_report.py" in page and "device kind" in page
    assert "4 runs, 32 tasks" in text and "38.3k" not in text and text.count("| constant |") == 6
    assert tool.main([str(workdir), "--laws=cubic"]) == 2
    assert "There is no law 'cubic': choose of constant" in capsys.readouterr().err
