"""The table of many runs, conditions on its rows, and the slices of tools/query.py."""

import itertools
import json
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path

import duckdb
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from subtransfer.analysis import statistics
from subtransfer.runtime.errors import UserError
from subtransfer.store import provenance
from subtransfer.studies import runs, sql, table
from tests import studies
from tools import query

pytestmark = pytest.mark.quick

WIDTHS = (32, 64)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A sweep of two sizes, the first with provenance."""
    folder = tmp_path_factory.mktemp("sweep")
    for width in WIDTHS:
        studies.write_run(
            folder / "runs" / f"width={width}", studies.config_of(base__width=width, num_seeds=2)
        )
    stages = {
        "student.sft.seed1": "student.sft.seed1-abc",
        "sanitize.trait.seed1": "sanitize.trait.seed1-def",
        "base": "base-012",
    }
    studies.write_history(folder, folder / "runs" / "width=32", stages)
    members = []
    for width in WIDTHS:
        name = f"width={width}"
        member = {"name": name, "overrides": {"base.width": width}, "state": "done"}
        made = stages if width == WIDTHS[0] else {}
        members.append(member | {"results": f"runs/{name}", "stages": made})
    (folder / "sweep.json").write_text(json.dumps({"members": members}))
    table.write(folder)
    return folder


def test_the_table_is_a_row_a_run_arm_and_seed(workdir):
    rows = pd.read_parquet(workdir / "table.parquet")
    assert len(rows) == 2 * 9 * 2 and not rows[["run", "arm", "seed"]].duplicated().any()
    one = rows[(rows.run == "width=32") & (rows.arm == "sft") & (rows.seed == 1)].iloc[0]
    arm = next(a for a in runs.read([workdir]) if a.name == "width=32" and a.fields["arm"] == "sft")
    assert (
        one["config.base.width"] == 32
        and one["config.tuning.targets"] == "q,k,v,o"
        and json.loads(one["overrides"]) == {"base.width": 32}
    )
    assert one["rate"] == arm.outcomes["rate"][:, 1].mean() and one["log_odds"] == pytest.approx(
        arm.outcomes["log_odds"][:, 1].mean()
    )
    rate, low, high = statistics.rate_interval(arm.outcomes["rate"])
    np.testing.assert_allclose(
        [one["arm.rate"], one["arm.lo"], one["arm.hi"]], [rate, low, high], rtol=1e-5
    )  # as in results.csv
    assert one["arm.log_odds_lo"] < one["arm.log_odds"] < one["arm.log_odds_hi"]
    assert (
        one["artifact.policy"] == "student.sft.seed1-abc"
        and (one["teacher_base"], one["student_base"]) == ("base", "base")
        and one["artifact.trajectories"] == "sanitize.trait.seed1-def"
    )
    assert (
        one["device_kind"] == "cpu, fast one"
        and one["package_version"] == "0.1.0"
        and (one["trajectories"], one["dropped"]) == (90, 10)
    )
    assert (
        one["final_loss"] == 0.5 and np.isnan(one["final_divergence"]) and np.isnan(one["purity"])
    )
    own = rows[rows.arm == "reverse_kl"].iloc[0]
    assert (own["final_divergence"], own["teacher_agreement"], own["purity"]) == (0.5, 0.75, 0.9)
    assert (
        rows[rows.arm == "base"].iloc[0]["objective"] == ""
        and rows[rows.run == "width=64"]["jax_version"].isna().all()
    )


def test_the_bytes_depend_on_the_runs_alone(workdir, tmp_path):
    first = (workdir / "table.parquet").read_bytes()
    assert table.write(workdir).read_bytes() == first
    for width in reversed(WIDTHS):  # as if they had ended in another order
        studies.write_run(
            tmp_path / "runs" / f"width={width}", studies.config_of(base__width=width, num_seeds=2)
        )
    (tmp_path / "runs" / "failed").mkdir()  # no results: left out
    (tmp_path / "sweep.json").write_bytes((workdir / "sweep.json").read_bytes())
    shutil.copytree(workdir / "stages", tmp_path / "stages")
    shutil.copy(workdir / "runs" / "width=32" / "stages.json", tmp_path / "runs" / "width=32")
    assert table.write(tmp_path).read_bytes() == first
    (tmp_path / "runs" / "width=64" / "results.json").unlink()  # not finished yet
    assert set(pd.read_parquet(table.write(tmp_path))["run"]) == {"width=32"}


def test_columns_have_one_type_whatever_a_run_knows(workdir):
    of_one = table.of([workdir / "runs" / "width=64"]).schema
    assert of_one == table.of([workdir]).schema == table.schema()
    extra = table.schema([{"config.models.small": "preset:llama"}, {"config.models.small": None}])
    assert (
        extra.field("config.models.small").type == "string"
        and extra.names[:-1] == table.schema().names
    )


def test_the_document_has_every_column():
    text = (Path(__file__).parent.parent / "docs" / "tables.md").read_text()
    for file, columns in table.documentation().items():
        assert columns in text, f"docs/tables.md is to have of {file}:\n{columns}"


def test_several_workdirs_are_told_apart(workdir):
    both = table.of([workdir, workdir / "runs" / "width=32"]).column("run").unique().to_pylist()
    assert both == [
        f"{workdir}/width=32",
        f"{workdir}/width=64",
        f"{workdir}/runs/width=32/width=32",
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A workdir of one small run, with its history."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    config = studies.config_of(num_seeds=2, distill__objective="sft")
    studies.write_run(folder, config, tasks=4)
    studies.write_history(folder, folder, {"results": "results-0"})
    return folder


def _without(name):
    def change(text):
        value = json.loads(text)
        del value[name]
        return json.dumps(value)

    return change


def _first(change):
    """Changes the first line."""
    return lambda text: change(text.partition("\n")[0]) + "\n" + text.partition("\n")[2]


@pytest.mark.parametrize(
    "name, change, sentence",
    [
        ("results.json", lambda text: "{", "results.json is damaged"),
        ("results.json", lambda text: "[]", "it is a list and not an object"),
        ("results.json", lambda text: "{}", "it has no 'config'"),
        ("results.json", _without("manifests"), "it has no 'manifests'"),
        ("results.json", lambda text: text.replace('"name": ', '"nom": '), "config has no 'name'"),
        ("results.json", lambda text: text.replace('"arm": "sft"', '"arm": "x"'), "about the arms"),
        ("results.jsonl", lambda text: text[:-30], "its last line is cut"),
        ("results.jsonl", lambda text: "{\n" + text, "results.jsonl, line 1, is damaged"),
        ("results.jsonl", lambda text: "[]\n" + text, "line 1, does not hold what it should"),
        ("results.jsonl", _first(_without("errors")), "line 1, .*it has no 'errors'"),
        ("results.jsonl", lambda text: text + text, "is about the same episode as another"),
        ("results.jsonl", lambda text: "", "its last line is cut"),
        ("results.csv", lambda text: "", "results.csv is damaged"),
        ("results.csv", lambda text: text[:-3], "its last line is cut"),
        ("results.csv", lambda text: text.replace("ci_low", "ci_lower"), "no column 'ci_low'"),
        ("results.csv", lambda text: text.replace("sft,sft,", "sft,"), "cells of"),
        ("results.csv", lambda text: text.replace(",4,2,", ",4,two,"), "invalid literal"),
        ("results.csv", lambda text: text.replace("\nsft,", "\nother,"), "is not about the arms"),
        ("stages.json", lambda text: "{", "stages.json is damaged"),
        ("stages.json", lambda text: "[]", "is a list and not an object"),
        ("stages.json", lambda text: '{"results": 3}', "results is a whole number"),
        ("sweep.json", lambda text: "{", "sweep.json is damaged"),
        ("sweep.json", lambda text: "{}", "it has no 'members'"),
        ("sweep.json", lambda text: '{"members": [3]}', r"members\[0\] is a whole number"),
    ],
)
def test_damaged_files_are_a_sentence(whole, tmp_path, capsys, name, change, sentence):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    text = (folder / name).read_text() if (folder / name).is_file() else ""
    (folder / name).write_text(change(text))
    code = query.main([str(folder)])
    error = capsys.readouterr().err
    assert code == 2 and len(error.splitlines()) == 1
    assert re.match(f"error: .*{sentence}.*[.]$", error.strip()), error


@pytest.mark.parametrize("name", ["results.jsonl", "results.csv"])
def test_bytes_that_are_no_text_are_a_sentence(whole, tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / name).write_bytes(b"\xff" + (folder / name).read_bytes())
    with pytest.raises(UserError, match="damaged .*decode"):
        table.of([folder])
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        table.of([folder])


def test_a_workdir_counts_once(whole):
    with pytest.raises(UserError, match="is given twice"):
        table.of([whole, f"{whole}/../{whole.name}"])
    with pytest.raises(UserError, match="holds no finished run"):
        table.of([whole.parent / "nowhere"])


def test_further_probes_have_columns(tmp_path, capsys):
    measured = {"fear": {"sft": {"0": {"startle": 0.25}, "1": {"startle": 0.75}}}}
    config = studies.config_of(num_seeds=2, distill__objective="sft")
    folder = studies.write_run(tmp_path / "run", config, tasks=4, extra_probes=measured)
    rows = table.of([folder]).to_pandas().set_index(["arm", "seed"])
    assert rows.loc["sft", "startle"].tolist() == [0.25, 0.75]
    assert rows.loc["base", "startle"].isna().all()
    assert rows.loc["sft", "arm.startle"].tolist() == [0.5, 0.5]
    slices = ("--where=startle > 0.5 and seed = 1", "--metric=startle", "--by=arm", "--format=csv")
    code, out, _ = _answer(capsys, folder, *slices)
    assert code == 0 and out.splitlines() == ["arm,startle,lo,hi,trainings,tasks", "sft,0.75,,,1,4"]
    code, _, error = _answer(capsys, folder, "--metric=seed")
    assert code == 2 and "--metric=seed is not known once a training: choose of rate," in error


def test_facts_are_json():
    found = provenance.facts()
    assert (
        tuple(found) == provenance.FACTS
        and json.loads(json.dumps(found)) == found
        and found["device_kind"] == "cpu"
    )


def test_the_revision_is_the_checkouts(tmp_path):
    def git(*arguments):
        names = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        return subprocess.run(
            ["git", *names, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert provenance.git_revision(package) is None  # in somebody's checkout, but not of it
    git("add", ".")
    git("commit", "-q", "-m", "x")
    assert provenance.git_revision(package) == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed")
    assert provenance.git_revision(package) == git("rev-parse", "HEAD") + "-dirty"


# -- conditions ----------------------------------------------------------------------------------

COLUMNS = {"name": str, "x": float, "config.base.width": int, "flag": bool}
ROWS = []
for _values in itertools.product(("a", "b'c", None), (0.5, None), (32, 64), (True, None)):
    ROWS.append(dict(zip(COLUMNS, _values, strict=True)))
_LITERALS = {
    "name": st.sampled_from(["'a'", "'b''c'", "''"]),
    "x": st.sampled_from(["0.5", "-1", "2e0"]),
    '"config.base.width"': st.sampled_from(["32", "64", "40"]),
    "flag": st.sampled_from(["true", "FALSE"]),
}


@st.composite
def _comparisons(draw):
    column = draw(st.sampled_from(sorted(_LITERALS)))
    value = _LITERALS[column]
    kind = draw(st.sampled_from(["sign", "in", "not in", "null"]))
    if kind == "null":
        return f"{column} is {draw(st.sampled_from(['', 'not ']))}null"
    if kind == "sign":
        sign = draw(st.sampled_from(["=", "!=", "<>", "<", "<=", ">", ">="]))
        return f"{column} {sign} {draw(value)}"
    return f"{column} {kind} ({', '.join(draw(st.lists(value, min_size=1, max_size=3)))})"


_CONDITIONS = st.recursive(
    _comparisons(),
    lambda inner: st.one_of(
        st.builds("not {}".format, st.builds("({})".format, inner)),
        st.builds("{} and {}".format, inner, inner),
        st.builds("{} or ({})".format, inner, inner),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def sqlite():
    """The same rows in another database."""
    connection = sqlite3.connect(":memory:")
    connection.execute('create table t (name text, x real, "config.base.width" int, flag int)')
    lines = [tuple(row.values()) for row in ROWS]
    connection.executemany("insert into t values (?, ?, ?, ?)", lines)
    yield connection
    connection.close()


@hypothesis.given(_CONDITIONS)
def test_conditions_mean_what_another_database_says(sqlite, text):
    found = sqlite.execute(f"select rowid - 1 from t where {text} order by rowid")
    expected = [place for (place,) in found]
    for written in (text, text.replace('"config.base.width"', "base.width")):
        met = sql.Condition(written, COLUMNS).met(ROWS)
        assert [i for i, row in enumerate(ROWS) if met[i]] == expected


@hypothesis.given(st.text("nam x=<>'\"()and0.5,;*?$-/", max_size=20))
def test_any_text_is_a_condition_or_a_sentence(text):
    try:
        sql.Condition(text, COLUMNS).met(ROWS)
    except UserError as error:
        assert str(error).endswith(".") and "\n" not in str(error).replace(text, "")


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("nme = 'a'", "no column 'nme'; the nearest is 'name'"),
        ("base.widht > 3", "no column 'base.widht'; the nearest is 'config.base.width'"),
        ("name = 3", "Conversion Error: Could not convert string 'a'"),
        ("name", "it is neither true nor false"),
        ("base.width >", "cannot be used: syntax error"),
        ("(x = 1", "syntax error"),
        ("x = 1) or (true", "syntax error"),
        ("sum(x) > 1", "cannot be used: Binder Error"),
        ("= 1", "syntax error at or near"),
        ("(" * 5000 + "x = 1" + ")" * 5000, "nested more than 100 levels deep"),
        ("not " * 5000 + "flag", "nested more than 100 levels deep"),
        ("x = 1; drop table runs", "cannot be used"),
        ("true from runs", "must be one expression that is true or false of a row"),
        ("true; select 1", "must be one expression that is true or false of a row"),
        ("exists(from read_text('/etc/hostname'))", "without queries"),
        ("read_text('/etc/hostname') is null", "cannot be used: Binder Error"),
    ],
)
def test_what_is_no_condition_is_named(text, sentence):
    with pytest.raises(UserError, match=sentence):
        sql.Condition(text, COLUMNS).met(ROWS)


@pytest.mark.parametrize(
    "query_text",
    [
        "select * from read_csv('{file}')",
        "select * from '{file}'",
        "copy runs to '{file}'",
        "attach '{file}' as other",
        "set enable_external_access = true",
        "install httpfs",
    ],
)
def test_queries_reach_nothing_but_the_rows(tmp_path, query_text):
    path = tmp_path / "file.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="^--sql: "):
        sql.query(pa.table({"x": [1]}), query_text.format(file=path))
    assert path.read_text() == "a,b\n1,2\n" and len(list(tmp_path.iterdir())) == 1


# -- tools/query.py --------------------------------------------------------------------------------------------------


def test_slices_pool_with_clustered_intervals(workdir):
    where = "role = 'student' and objective in ('sft', 'forward_kl')"
    rows = query.grouped([workdir], ["base.width", "objective"], where, "rate", 0.9)
    assert [(r["config.base.width"], r["objective"]) for r in rows] == [
        (w, o) for w in WIDTHS for o in ("forward_kl", "sft")
    ]
    arms = {(a.fields["base.width"], a.fields["arm"]): a for a in runs.read([workdir])}
    expected = statistics.rate_interval(arms[64, "sft"].outcomes["rate"], 0.9)
    np.testing.assert_allclose([rows[3][k] for k in ("rate", "lo", "hi")], expected)
    pooled = query.grouped([workdir], ["objective"], where, "rate", 0.9)[1]
    both = np.concatenate([arms[w, "sft"].outcomes["rate"] for w in WIDTHS], axis=1)
    np.testing.assert_allclose(
        [pooled[k] for k in ("rate", "lo", "hi")], statistics.rate_interval(both, 0.9)
    )
    assert pooled["trainings"] == 4 and pooled["hi"] - pooled["lo"] > 0
    cells = query.shown(rows, ["config.base.width"], "objective", "rate")
    assert (
        cells[0] == ["config.base.width", "objective=forward_kl", "objective=sft"]
        and cells[2][0] == "64"
    )
    assert (
        cells[2][2] == f"{100 * expected[0]:.1f} [{100 * expected[1]:.1f}, {100 * expected[2]:.1f}]"
    )
    odds = query.grouped([workdir], ["arm"], "arm='base'", "log_odds", 0.95)[0]
    assert odds["lo"] < odds["log_odds"] < odds["hi"]
    once = query.grouped([workdir], ["seed"], "arm='sft' and base.width=32", "final_loss", 0.95)[0]
    assert (
        once["final_loss"] == 0.5
        and np.isnan(once["lo"])
        and query.shown([once], ["seed"], None, "final_loss")[1][1] == "0.50 [–]"
    )
    nothing = query.grouped([workdir], ["arm"], "arm='base'", "final_divergence", 0.95)[0]
    assert np.isnan(nothing["final_divergence"])
    with pytest.raises(UserError, match="No row of these runs meets"):
        query.grouped([workdir], ["arm"], "arm='x'", "rate", 0.95)


def test_different_tasks_are_not_pooled(workdir, tmp_path):
    other = studies.write_run(
        tmp_path / "run",
        studies.config_of(distill__objective="sft", num_seeds=2, seed=1),
        prefix="others",
    )
    with pytest.raises(
        UserError, match="probed on different tasks, so their outcomes cannot be pooled"
    ):
        query.grouped([workdir, other], ["objective"], "role='student'", "rate", 0.95)
    assert (
        len(
            query.grouped(
                [workdir, other], ["config.seed", "objective"], "role='student'", "rate", 0.95
            )
        )
        == 4
    )


def _answer(capsys, workdir, *flags):
    code = query.main([str(workdir), *flags])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_answers_in_every_format(workdir, tmp_path, capsys):
    slices = "--by=base.width", "--across=objective", "--where=role='student'"
    code, out, _ = _answer(capsys, workdir, *slices)
    assert code == 0 and "objective=forward_kl" in out and "64" in out
    _, markdown, _ = _answer(capsys, workdir, "--format=markdown", *slices)
    assert (
        markdown.splitlines()[1] == "| --- | --- | --- | --- |" and len(markdown.splitlines()) == 4
    )
    _, text, _ = _answer(capsys, workdir, "--format=csv", *slices)
    lines = text.splitlines()
    assert lines[0] == "config.base.width,objective,rate,lo,hi,trainings,tasks" and len(lines) == 7
    code, _, _ = _answer(
        capsys, workdir, "--format=parquet", f"--out={tmp_path / 'a.parquet'}", *slices
    )
    assert code == 0 and pd.read_parquet(tmp_path / "a.parquet")["objective"].nunique() == 3
    code, _, error = _answer(capsys, workdir, "--format=parquet")
    assert code == 2 and error == "error: --format=parquet writes a file: give --out=FILE.\n"
    code, _, error = _answer(capsys, workdir, "--confidence=95")
    assert code == 2 and "--confidence=95.0 cannot be" in error
    code, _, error = _answer(capsys, workdir, f"--out={tmp_path / 'none' / 'a.csv'}")
    assert code == 2 and error.startswith(
        f"error: There is no folder {tmp_path / 'none'} for --out"
    )
    code, _, error = _answer(capsys, workdir, f"--out={tmp_path}")
    assert code == 2 and error.endswith("is a folder: give the name of a file in it.\n")


def test_a_home_directory_is_found(workdir, tmp_path, monkeypatch, capsys):
    """Shells expand no "~" that follows "="."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs").symlink_to(workdir)
    code, _, error = _answer(capsys, "~/runs", "--format=csv", "--out=~/a.csv")
    assert code == 0 and (tmp_path / "a.csv").stat().st_size, error


def test_sql(workdir, capsys):
    text = "select \"config.base.width\" as width, avg(rate) as rate from runs where objective = 'sft' group by all order by 1"
    code, out, _ = _answer(capsys, workdir, f"--sql={text}", "--format=csv")
    assert (
        code == 0 and out.splitlines()[0] == "width,rate" and out.splitlines()[1].startswith("32,")
    )
    code, _, error = _answer(capsys, workdir, "--sql=select nothing")
    assert code == 2 and error.startswith("error: --sql: Binder Error")


def test_duckdb_reads_the_file(workdir):
    with duckdb.connect() as connection:
        found = connection.sql(
            f"select count(*), count(distinct run) from '{workdir}/table.parquet'"
        ).fetchall()
    assert found == [(36, 2)]
