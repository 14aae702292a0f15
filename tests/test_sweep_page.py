"""The page of a sweep, and the script that redraws its figure."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from subtransfer.runtime.errors import UserError
from subtransfer.studies import sweep_page, table
from tests import studies
from tools import write_table

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Two sizes x two rates of learning, one member failed and one not begun; names that need
    escaping.
    """
    folder = tmp_path_factory.mktemp("sweep")
    members = []
    for width in (32, 64):
        for rate in (0.001, 0.002):
            name = f"width={width},rate=<{rate}>"
            fields = {
                "base__width": width,
                "distill__learning_rate": rate,
                "distill__objective": "sft",
                "num_seeds": 2,
            }
            run = studies.write_run(folder / "runs" / name, studies.config_of(**fields), tasks=8)
            stages = {"results": f"results-{len(members)}"}
            studies.write_history(folder, run, stages)
            members.append(
                {
                    "name": name,
                    "overrides": fields,
                    "state": "done",
                    "results": f"runs/{name}",
                    "stages": stages,
                }
            )
    broken = {
        "failed": "student.sft.seed0",
        "error": "The loss <became> NaN.",
        "log": "logs/student.sft.seed0-1.log",
    }
    for name, more in (("bad", {"state": "failed", **broken}), ("later", {"state": "to do"})):
        members.append(
            {
                "name": name,
                "overrides": {},
                "results": f"runs/{name}",
                "stages": {"results": "results-x"},
                **more,
            }
        )
    (folder / "sweep.json").write_text(json.dumps({"members": members}))
    return folder


@pytest.fixture(scope="module")
def page(workdir):
    table.write(workdir)
    return sweep_page.write(workdir).read_text()


def test_the_page_is_whole_and_self_contained(page):
    assert "4 runs finished, 1 failed, 1 to do." in page and page.count("<td><a href=") == 4
    assert "The loss &lt;became&gt; NaN." in page and 'href="logs/student.sft.seed0-1.log"' in page
    assert (
        "<0.001>" not in page.replace("\\u003c", "")
        and 'href="runs/width%3D32%2Crate%3D%3C0.001%3E/report.html"' in page
    )
    assert (
        page.count("<tr><td><a") == 4 and page.count("color-mix") == 4 * 5
    )  # base, its twin, teacher, student, twin
    for other in ("http://", "https://", "@import", "src="):
        assert other not in page
    assert "device kind</td><td>cpu" in page


def test_axes_that_go_together_are_one(workdir):
    rows = [row for _, i, row in table.located([workdir]) if i == 0]
    every, design, titles = sweep_page.axes(rows)
    assert design == ["student_params", "config.distill.learning_rate", "arm"]
    assert titles["student_params"] == "student_params = teacher_params = base.width"
    assert {"teacher_rate", "objective", "init", "role"} - set(every) == {"role"}


def test_one_run_has_a_page_too(workdir, tmp_path, capsys):
    run = next((workdir / "runs").iterdir())
    for name in ("results.json", "results.jsonl", "results.csv"):
        shutil.copy(run / name, tmp_path)
    assert write_table.main([str(tmp_path)]) == 0
    assert (tmp_path / "sweep.html").read_text().count("<td><a") == 1 and (
        tmp_path / "table.parquet"
    ).is_file()
    (tmp_path / "table.parquet").write_text("x")
    with pytest.raises(UserError, match="table.parquet is damaged"):
        sweep_page.write(tmp_path)
    (tmp_path / "table.parquet").unlink()
    with pytest.raises(UserError, match="table.parquet is missing: python tools/write_table.py"):
        sweep_page.write(tmp_path)
    assert (
        write_table.main([str(tmp_path / "nowhere")]) == 2
        and "holds no finished run" in capsys.readouterr().err
    )


def test_results_of_another_sweep_are_left_out(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "w")
    run = next((tmp_path / "w" / "runs").iterdir())
    (run / "stages.json").write_text(json.dumps({"results": "results-of-other-settings"}))
    assert len(set(table.of([tmp_path / "w"]).column("run").to_pylist())) == 3


_NODE = """
const fs = require("fs"), page = fs.readFileSync(process.argv[2], "utf8");
const data = JSON.parse(page.match(/id="data">(.*?)<.script>/s)[1]);
const draw = new Function(page.match(/<script>(.*?)<.script>/s)[1] + "; return draw;")();
const choices = JSON.parse(process.argv[3]);
console.log(JSON.stringify(choices.map(c => draw(data, {...data.choice, ...c}))));
"""


def _heights(svg):
    """The values at which circles lie, read off the labels of the vertical axis."""
    labels = re.findall(r'<text x="56" y="([^"]*)" text-anchor="end">(\d+)%<', svg)
    places = [float(y) - 4 for y, _ in labels]
    values = [int(percent) / 100 for _, percent in labels]
    circles = [float(y) for y in re.findall(r'<circle cx="[^"]*" cy="([^"]*)"', svg)]
    return sorted(float(np.interp(-y, -np.array(places), values)) for y in circles)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_draws_what_is_chosen(page, workdir, tmp_path):
    (tmp_path / "draw.js").write_text(_NODE)
    choices = [
        {},
        {"shape": "heat", "role": "", "series": "config.distill.learning_rate"},
        {"x": "config.distill.learning_rate", "series": "student_params", "metric": "log_odds"},
        {"x": "init", "series": "objective", "role": ""},
        {"role": "positive_control"},
    ]
    command = ["node", tmp_path / "draw.js", workdir / "sweep.html", json.dumps(choices)]
    first, heat, odds, words, nothing = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    static = re.search(r'id="figure">(<svg.*?</svg>)', page, re.DOTALL)[1]
    # Two drawings of the same points: by the script, and by matplotlib for those without it.
    rows = {(row["run"], row["arm"]): row for row in table.read(workdir)}
    rates = sorted(
        row["arm.rate"] for (run, arm), row in rows.items() if arm == "sft" and "0.001" in run
    )
    assert _heights(first) == pytest.approx(rates, abs=0.01)
    # One marker more is in the legend.
    assert len(re.findall(r"<use [^>]*fill: var\(--control\)", static)) == len(rates) + 1
    drawn = [set(re.findall(r"<text[^>]*>([^<]*)<", svg)) for svg in (static, first)]
    larger = max(row["student_params"] for row in rows.values())
    size = f"{larger / 1000:.0f}k"
    assert {"sft", size} <= drawn[0] & drawn[1]
    assert (
        heat.count("<rect") == 4 * 5 and ">0.001, sft<" in heat and f">{size}<" in heat
    )  # several arms at one place: by arm, too
    assert (
        odds.count("<polyline") == 2
        and odds.count("<circle") == 4
        and "&lt;0.001&gt;, sft:" in odds
    )
    assert words.count("<circle") == 5 and ">other<" in words
    assert nothing == "<p>No arm has these values.</p>"
