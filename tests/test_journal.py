"""Journals: what is sampled is written down, and a sampling that was cut off goes on bit by bit."""

import random
import shutil

import jax
import numpy as np
import pytest

from subtransfer.rollout import lanes, scheduler
from subtransfer.rollout.episodes import RolloutSpec, run_episodes
from subtransfer.runtime import preemption
from subtransfer.runtime.errors import UserError
from subtransfer.store.journal import Journals

HEADER = {"shape": [1, 2]}


def _journals(folder, every_seconds=0.0):
    (folder / ".claims").mkdir(parents=True, exist_ok=True)
    return Journals(folder / "rollouts-0123", "rollouts", every_seconds)


def _files(folder):
    return sorted((folder / ".steps" / "rollouts-0123" / "journals").glob("*.log"))


def _write(folder, records, header=HEADER, every_seconds=0.0):
    journal = _journals(folder, every_seconds).open("lane", header)
    for record in records:
        journal.append(record)
    journal.close()


def _read(folder, header=HEADER):
    return _journals(folder).open("lane", header).records


def test_a_torn_or_damaged_end_costs_what_follows_it_and_no_more(tmp_path):
    records = [b"one", b"", bytes(range(99)), b"four" * 9]
    _write(tmp_path, records)
    (file,) = _files(tmp_path)
    whole = file.read_bytes()
    lengths = set()
    for size in range(len(whole) + 1):
        file.write_bytes(whole[:size])
        found = _read(tmp_path)
        assert found == records[: len(found)]
        lengths.add(len(found))
    assert lengths == {0, 1, 2, 3, 4}
    for at in range(0, len(whole), 7):  # a bit that flipped
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        found = _read(tmp_path)
        assert len(found) < 4 and found == records[: len(found)]


def test_attempts_go_on_where_the_one_before_ended(tmp_path):
    _write(tmp_path, [b"0", b"1"])
    zombie = _journals(tmp_path).open("lane", HEADER)
    assert zombie.records == [b"0", b"1"]
    zombie.append(b"2")
    _write(tmp_path, [b"3"])
    # One that was taken for dead goes on writing: who took over from it counts.
    zombie.append(b"x")
    zombie.close()
    assert _read(tmp_path) == [b"0", b"1", b"2", b"3"]
    # The third begins before the second's end, as that was torn.
    third = _journals(tmp_path).open("lane", HEADER)
    third.cut(3)
    third.append(b"3'")
    third.close()
    assert _read(tmp_path) == [b"0", b"1", b"2", b"3'"]


def test_what_rests_on_something_else_does_not_count_and_stays(tmp_path):
    _write(tmp_path, [b"0"])
    other = _journals(tmp_path).open("lane", {"shape": [4]})
    assert other.records == [] and other.others
    _write(tmp_path, [b"a", b"b"], {"shape": [4]})
    assert _read(tmp_path) == [b"0"] and _read(tmp_path, {"shape": [4]}) == [b"a", b"b"]
    # Parts of a stage, and lanes whose names begin alike, are apart.
    assert _journals(tmp_path).of("greedy").open("lane", HEADER).records == []
    assert _journals(tmp_path).open("lan", HEADER).records == []


def test_every_interval_has_a_file_that_has_an_end(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("subtransfer.store.journal.time.monotonic", lambda: now[0])
    journal = _journals(tmp_path, 10.0).open("lane", HEADER)
    for number in range(6):
        now[0] += 4
        journal.append(b"%d" % number)
    journal.close()
    assert len(_files(tmp_path)) == 2
    assert _read(tmp_path) == [b"0", b"1", b"2", b"3", b"4", b"5"]
    _files(tmp_path)[0].unlink()  # without its beginning the rest says nothing
    assert _read(tmp_path) == []


def test_a_workdir_that_vanishes_is_not_made_again(tmp_path):
    journal = _journals(tmp_path / "w").open("lane", HEADER)
    shutil.rmtree(tmp_path / "w")
    with pytest.raises(UserError, match="has vanished"):
        journal.append(b"0")
    assert not (tmp_path / "w").exists()


# -- episodes ----------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands in for SIGKILL: nothing is written after it."""


@pytest.fixture
def kill(monkeypatch):
    """Ends the process, as it were, when so many calls have been written down."""
    pack, append = lanes._packed, lanes.Journal.append
    left = [0]
    written = []

    def packed(out):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return pack(out)

    def counted(self, record):
        written.append(record)
        append(self, record)

    monkeypatch.setattr(lanes, "_packed", packed)
    monkeypatch.setattr(lanes.Journal, "append", counted)

    def after(calls):
        left[0] = calls
        return written

    return after


def _same(one, other):
    for a, b in zip(one, other, strict=True):
        for name in ("tokens", "loss_mask", "turn_ids", "behavior_logprobs"):
            mine, theirs = getattr(a, name), getattr(b, name)
            assert mine.dtype == theirs.dtype and mine.tobytes() == theirs.tobytes(), name
        for name in ("episode_id", "messages", "actions", "solved", "truncated"):
            assert getattr(a, name) == getattr(b, name), name


ENDLESS = 10**9


@pytest.mark.parametrize(
    "options",
    [
        {"lanes": 0},
        {"lanes": 1},
        pytest.param({"lanes": 2, "well_formed": True}, marks=pytest.mark.slow),
        pytest.param({"lanes": 3, "int8_cache": True}, marks=pytest.mark.slow),
        pytest.param({"lanes": 0, "temperature": 0.0}, marks=pytest.mark.slow),
    ],
)
def test_episodes_that_were_cut_off_end_as_if_nothing_had_happened(
    cfg, weights, chat, setting, tmp_path, kill, options
):
    """To the last bit, and no call of the device is written down twice."""
    spec = RolloutSpec(8, 3, 12, 13, **{"temperature": 1.0, **options})
    tasks, rng = setting.tasks("safe", "train", 60, 0), random.Random(repr(options))

    def run(folder=None):
        journals = _journals(folder, 120.0) if folder else None
        key = jax.random.key(1)
        return run_episodes(cfg, weights, chat, tasks, spec, key, policy="p", journals=journals)

    kill(ENDLESS)
    undisturbed, whole = run()
    _same(run(tmp_path / "once")[0], undisturbed)
    needed = sum(len(set(_numbered(file))) for file in _files(tmp_path / "once"))
    written = kill(0)
    written.clear()
    for _ in range(3):
        kill(rng.randrange(1, 4))
        with pytest.raises(Killed):
            run(tmp_path / "w")
    kill(ENDLESS)
    episodes, last = run(tmp_path / "w")
    _same(episodes, undisturbed)
    # What was written down is what an undisturbed run needs, call by call.
    assert len(written) == needed
    assert 0 < last.tokens < whole.tokens
    # Nothing is left to do: not a call of the device.
    again, nothing = run(tmp_path / "w")
    _same(again, undisturbed)
    assert nothing.tokens == nothing.dispatches == 0


def _numbered(file):
    """The records of a file, each with its place, without the header."""
    from subtransfer.store.journal import _frames

    return list(enumerate(_frames(file.read_bytes())))[1:]


def test_a_device_that_draws_otherwise_is_fed_what_is_known(
    cfg, weights, chat, setting, tmp_path, kill, monkeypatch
):
    """The slots are filled with the journal's tokens: the same episodes, but for the last bits."""
    spec, tasks = RolloutSpec(8, 3, 12, 13, 1.0), setting.tasks("safe", "train", 60, 0)

    def run(journals=None):
        return run_episodes(cfg, weights, chat, tasks, spec, jax.random.key(1), journals=journals)[
            0
        ]

    kill(ENDLESS)
    undisturbed = run()
    monkeypatch.setattr(lanes.distributed, "anywhere", lambda differs: True)
    for calls in (3, 2, 2):  # the second and the third read of the first one's feeding
        kill(calls)
        with pytest.raises(Killed):
            run(_journals(tmp_path))
    written = kill(ENDLESS)
    episodes = run(_journals(tmp_path))
    assert written.count(lanes._FED_AGAIN) >= 3
    for a, b in zip(episodes, undisturbed, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_allclose(a.behavior_logprobs, b.behavior_logprobs, atol=1e-5)


def test_a_notice_ends_episodes_after_the_call_under_way(
    cfg, weights, chat, setting, tmp_path, kill, monkeypatch, capfd
):
    spec, tasks = RolloutSpec(8, 3, 12, 13, 1.0), setting.tasks("safe", "train", 60, 0)

    def run():
        return run_episodes(
            cfg, weights, chat, tasks, spec, jax.random.key(1), journals=_journals(tmp_path)
        )[0]

    written = kill(ENDLESS)
    monkeypatch.setattr(preemption, "noticed", lambda: len(written) >= 6)
    with pytest.raises(preemption.Preempted):
        run()
    assert 6 <= len(written) <= 8  # of two lanes
    monkeypatch.undo()
    assert len(run()) == 60
    assert "rollouts goes on with " in capfd.readouterr().err


def test_another_layout_of_slots_begins_again_and_says_so(
    cfg, weights, chat, setting, tmp_path, kill, capfd
):
    tasks = setting.tasks("safe", "train", 20, 0)

    def run(slots):
        spec = RolloutSpec(slots, 3, 12, 13, 1.0, lanes=1)
        return run_episodes(
            cfg, weights, chat, tasks, spec, jax.random.key(1), journals=_journals(tmp_path)
        )[0]

    kill(1)
    with pytest.raises(Killed):
        run(8)
    kill(ENDLESS)
    _same(run(4), run(4))
    assert "they begin again" in capfd.readouterr().err
    assert scheduler.layout(8, 64, 32, None, lanes=1) != scheduler.layout(4, 64, 32, None, lanes=1)
