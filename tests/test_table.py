"""The table of many runs, conditions on its rows, and the slices of tools/query.py."""

import json
import shutil
import subprocess

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from subtransfer.analysis import statistics
from subtransfer.runtime.errors import UserError
from subtransfer.store import provenance
from subtransfer.studies import conditions, runs, table
from tests import studies
from tools import query

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
    members = [
        {"name": f"width={w}", "overrides": {"base.width": w}, "state": "finished"} for w in WIDTHS
    ]
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


def test_several_workdirs_are_told_apart(workdir):
    both = table.of([workdir, workdir / "runs" / "width=32"]).column("run").unique().to_pylist()
    assert both == [
        f"{workdir}/width=32",
        f"{workdir}/width=64",
        f"{workdir}/runs/width=32/width=32",
    ]


def test_what_cannot_be_read_is_a_sentence(workdir, tmp_path):
    with pytest.raises(UserError, match="holds no finished run"):
        table.of([tmp_path])
    run = studies.write_run(
        tmp_path / "run", studies.config_of(num_seeds=2, distill__objective="sft"), tasks=4
    )
    (run / "results.jsonl").write_text("{")
    with pytest.raises(UserError, match="are damaged"):
        table.of([run])
    (run / "results.csv").unlink()
    (run / "results.jsonl").write_text("")
    with pytest.raises(UserError, match="results.csv is missing"):
        table.of([run])
    (run / "stages.json").write_text("{")
    with pytest.raises(UserError, match="stages.json is damaged"):
        provenance.History(tmp_path).of(run)
    (run / "sweep.json").write_text("{")
    with pytest.raises(UserError, match="sweep.json is damaged"):
        runs.members(run)
    old = studies.write_run(
        tmp_path / "old", studies.config_of(num_seeds=2, distill__objective="sft"), tasks=4
    )
    bundle = json.loads((old / "results.json").read_text())
    bundle["arms"][0]["arm"] = "an arm that there was once"
    (old / "results.json").write_text(json.dumps(bundle))
    with pytest.raises(UserError, match="are another version's"):
        table.of([old])


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


# -- conditions ------------------------------------------------------------------------------------------------------

COLUMNS = {"name": str, "x": float, "config.base.width": int, "flag": bool}
ROWS = [
    {"name": name, "x": x, "config.base.width": width, "flag": flag}
    for name in ("a", "b'c", None) for x in (0.5, None) for width in (32, 64) for flag in (True, None)
]  # fmt: skip
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
        return f"{column} {draw(st.sampled_from(['=', '!=', '<>', '<', '<=', '>', '>=']))} {draw(value)}"
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
def database():
    with pytest.importorskip("duckdb").connect() as connection:
        connection.register(
            "t", pa.Table.from_pylist([row | {"place": i} for i, row in enumerate(ROWS)])
        )
        yield connection


@hypothesis.settings(max_examples=60)
@hypothesis.given(_CONDITIONS)
def test_conditions_mean_what_duckdb_says(database, text):
    expected = [
        place
        for (place,) in database.sql(f"select place from t where {text} order by place").fetchall()
    ]
    test = conditions.parse(text, COLUMNS)
    assert [i for i, row in enumerate(ROWS) if test(row)] == expected


@hypothesis.given(st.text("nam x=<>'\"()and0.5,", max_size=20))
def test_any_text_is_a_condition_or_a_sentence(text):
    try:
        conditions.parse(text, COLUMNS)
    except UserError as error:
        assert str(error).endswith(".")


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("nme = 'a'", "no column 'nme'; the nearest is 'name'"),
        ("name = 3", "has '3' where a text in single quotes .as name is. should be"),
        ("x in ()", "has '[)]' where a number"),
        ("base.width >", "has its end where a number"),
        ("x = 1 x", "has 'x' where 'and', 'or' or the end"),
        ("(x = 1", "has its end where '[)]'"),
        ("x ~ 1", "cannot be read at '~ 1'"),
        ("x like 1", "has 'like' where =, !="),
        ("= 1", "has '=' where the name of a column"),
    ],
)
def test_what_is_no_condition_is_named(text, sentence):
    with pytest.raises(UserError, match=sentence):
        conditions.parse(text, COLUMNS)


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
        and query.shown([once], ["seed"], None, "final_loss")[1][1] == "0.50"
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


def test_sql(workdir, capsys):
    pytest.importorskip("duckdb")
    sql = "select \"config.base.width\" as width, avg(rate) as rate from runs where objective = 'sft' group by all order by 1"
    code, out, _ = _answer(capsys, workdir, f"--sql={sql}", "--format=csv")
    assert (
        code == 0 and out.splitlines()[0] == "width,rate" and out.splitlines()[1].startswith("32,")
    )
    code, _, error = _answer(capsys, workdir, "--sql=select nothing")
    assert code == 2 and error.startswith("error: --sql: Binder Error")


def test_duckdb_reads_the_file(workdir):
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as connection:
        found = connection.sql(
            f"select count(*), count(distinct run) from '{workdir}/table.parquet'"
        ).fetchall()
    assert found == [(36, 2)]
