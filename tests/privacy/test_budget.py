"""What was released of an image adds up over all runs, and is on the disk before it is sent."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from manyhands.errors import BudgetError
from manyhands.privacy.accountant import epsilon
from manyhands.privacy.budget import NO_COST, RELEASES_FILE, Budget, Cost, Limits

SECRET = "5" * 64
ONE = Cost(mu_squared=0.25, snr=0.01, releases=1)
UNLIMITED = Limits()


def charged(folder: Path, path: bytes, cost: Cost = ONE, limits: Limits = UNLIMITED) -> Cost:
    """What is spent after one more release of one image, by a process that has just begun."""
    Budget(folder, SECRET).charge([b"image"], [path], cost, limits, run="run")
    return Budget(folder, SECRET).worst()


def test_releases_add_up_as_gaussian_mechanisms_do(tmp_path: Path) -> None:
    assert Budget(tmp_path, SECRET).worst() == NO_COST
    for number in range(1, 5):
        spent = charged(tmp_path, f"{number}".encode())
        assert spent.epsilon(1e-5) == pytest.approx(epsilon(0.5 * math.sqrt(number), 1e-5))
        assert (spent.releases, spent.snr) == (number, pytest.approx(0.01 * number))


def test_the_same_release_costs_nothing_again_and_another_image_has_a_budget_of_its_own(tmp_path: Path) -> None:
    budget = Budget(tmp_path, SECRET)
    budget.charge([b"a", b"b"], [b"x", b"y"], ONE, UNLIMITED, run="one")
    size = (tmp_path / RELEASES_FILE).stat().st_size
    budget.charge([b"b", b"a"], [b"y", b"x"], ONE, UNLIMITED, run="two")
    assert (tmp_path / RELEASES_FILE).stat().st_size == size
    assert budget.worst().releases == 1
    budget.charge(
        [b"a"], [b"y"], ONE, UNLIMITED, run="three"
    )  # the bytes of another image's release are new of this one
    assert budget.worst().releases == 2


def test_releases_of_one_path_tell_what_the_least_noisy_of_them_tells(tmp_path: Path) -> None:
    louder, between = ONE._replace(mu_squared=1.0, snr=0.04), ONE._replace(mu_squared=0.5, snr=0.02)
    for cost in (ONE, louder, between, ONE, between, louder):
        spent = charged(tmp_path, b"x", cost)
    assert (spent.releases, spent.snr) == (1, pytest.approx(0.04 * 10 ** (3 / 8 / 10), rel=1e-3))
    assert spent.epsilon(1e-5) == pytest.approx(epsilon(2 ** (1 / 16), 1e-5))
    size = (tmp_path / RELEASES_FILE).stat().st_size
    charged(tmp_path, b"x", ONE._replace(mu_squared=0.7, snr=0.03))
    assert (tmp_path / RELEASES_FILE).stat().st_size == size
    assert charged(tmp_path, b"y", louder).snr == pytest.approx(spent.snr + 0.04)


def test_an_image_that_is_released_twice_in_one_message_counts_twice(tmp_path: Path) -> None:
    Budget(tmp_path, SECRET).charge([b"a"] * 3, [b"x", b"y", b"x"], ONE, UNLIMITED, run="run")
    assert Budget(tmp_path, SECRET).worst().releases == 2


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        (Limits(epsilon=epsilon(0.5 * math.sqrt(3), 1e-5)), "epsilon"),
        (Limits(snr_db=10 * math.log10(0.031)), "snr_db"),
        (Limits(releases=3), "releases"),
    ],
)
def test_what_goes_beyond_a_limit_is_refused_with_what_is_spent_and_left(
    tmp_path: Path, limits: Limits, what: str
) -> None:
    for number in range(3):
        charged(tmp_path, f"{number}".encode(), limits=limits)
    before = (tmp_path / RELEASES_FILE).read_bytes()
    with pytest.raises(
        BudgetError, match=rf"at {what} .* over all runs; at most .* is allowed .*spent: 3 releases.*left: "
    ):
        charged(tmp_path, b"one more", limits=limits)
    assert (tmp_path / RELEASES_FILE).read_bytes() == before
    charged(tmp_path, b"0", limits=limits)  # what was sent once may be sent again


def test_an_image_as_it_is_has_no_epsilon(tmp_path: Path) -> None:
    bare = Cost(math.inf, math.inf, 1)
    with pytest.raises(BudgetError, match="epsilon inf"):
        charged(tmp_path, b"x", bare, Limits(epsilon=1e6))
    assert math.isinf(charged(tmp_path, b"x", bare).epsilon(1e-5))
    assert "Infinity" not in (tmp_path / RELEASES_FILE).read_text()


def test_the_epsilon_of_labels_is_added(tmp_path: Path) -> None:
    spent = charged(tmp_path, b"x", ONE._replace(labels=2.0))
    assert spent.epsilon(1e-5) == pytest.approx(2 + epsilon(0.5, 1e-5))


def test_processes_that_share_a_ledger_know_of_each_other(tmp_path: Path) -> None:
    one, two = Budget(tmp_path, SECRET), Budget(tmp_path, SECRET)
    limits = Limits(releases=2)
    one.charge([b"a"], [b"x"], ONE, limits, run="run")
    two.charge([b"a"], [b"y"], ONE, limits, run="run")
    with pytest.raises(BudgetError, match="at releases 3"):
        one.charge([b"a"], [b"z"], ONE, limits, run="run")


def test_it_names_no_image_and_nobody_can_tell_one_without_the_secret(tmp_path: Path) -> None:
    charged(tmp_path / "a", b"x")
    Budget(tmp_path / "b", "6" * 64).charge([b"image"], [b"x"], ONE, UNLIMITED, run="run")
    one, other = ((tmp_path / name / RELEASES_FILE).read_text().splitlines()[1] for name in "ab")
    assert json.loads(one)["images"] != json.loads(other)["images"]
    assert (tmp_path / "a" / RELEASES_FILE).stat().st_mode & 0o777 == 0o600


def test_a_line_that_a_kill_cut_short_is_dropped_and_any_other_damage_stops_all(tmp_path: Path) -> None:
    charged(tmp_path, b"x")
    path = tmp_path / RELEASES_FILE
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"run": "run", "cos')
    assert charged(tmp_path, b"y").releases == 2
    for torn in (whole[:-40] + b"\n", b"[1]\n" + whole, whole.replace(b'"images": "', b'"images": "zz')):
        path.write_bytes(torn)
        with pytest.raises(BudgetError, match="cannot be read after .* nothing is released until"):
            charged(tmp_path, b"z")
        assert path.read_bytes() == torn


def test_a_ledger_of_another_secret_is_refused(tmp_path: Path) -> None:
    charged(tmp_path, b"x")
    with pytest.raises(BudgetError, match="another secret"):
        Budget(tmp_path, "6" * 64).worst()
