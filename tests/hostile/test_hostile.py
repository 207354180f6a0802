"""Some cases of every attack: nothing fails. ``python -m tests.hostile`` tries more."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.hostile.__main__ import table
from tests.hostile.harness import Attack, Failed, Tally, all_attacks, attempt, preparation, run
from tests.hostile.writers import writers

# As many cases as take some seconds. Attacks in one line are prepared alike, once.
CASES = (
    {"files": 100},
    {"arguments": 40},
    {"calls": 200},
    {"faults": 12},
    {"kills": 3, "disks": 3, "races": 2},
    {"deaths": 2},
    {"ranks": 200},
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cases", CASES, ids=" ".join)
def test_nothing_fails(cases: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # nobody need be asked for made-up names
    attacks = [all_attacks()[name] for name in cases]
    assert len({attack.prepare for attack in attacks}) == 1
    with preparation(attacks[0]) as shared:
        for attack in attacks:
            tally = run(attack, shared, seconds=math.inf, seed=1, most=cases[attack.name])
            assert tally.failed == {}
            assert tally.cases == cases[attack.name]
            # Not all cases end alike: an attack that always ends in the same way tries nothing.
            assert len(tally.outcomes) > 1
            assert f"| {attack.name}: " in table([attack], [tally])


def test_every_attack_is_tried() -> None:
    assert sorted(name for cases in CASES for name in cases) == sorted(all_attacks())


def test_what_fails_is_counted_with_its_case(capsys: pytest.CaptureFixture[str]) -> None:
    def case(_shared: None, rng: object, _folder: Path) -> str:
        number = rng.randint(0, 3)  # type: ignore[attr-defined]
        if number == 0:
            raise Failed("it failed")
        if number == 1:
            raise ZeroDivisionError
        return "stood"

    attack = Attack("toy", "nothing", lambda _: None, case)
    tally = run(attack, None, seconds=60.0, seed=0, most=40)
    assert tally.cases == 40
    assert 0 < len(tally.failed) < 40
    assert "it failed" in capsys.readouterr().err
    again = Tally()
    attempt(attack, None, next(iter(tally.failed)), 0, again)
    assert again.failed  # a case can be repeated


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cut_file_and_a_leftover_are_seen(tmp_path: Path) -> None:
    for writer in writers(tmp_path, ("prune", "demo")):
        place = tmp_path / writer.name / "again"
        for path in sorted((place / "out").iterdir()):
            content = path.read_bytes()
            for damaged in (b"", content[: len(content) // 2], content[:-2]):
                path.write_bytes(damaged)
                with pytest.raises(Failed, match=path.name):
                    writer.state(place)
            path.unlink()
            if path.suffix == ".png":
                assert writer.state(place) == "whole but for its figure"
            else:
                with pytest.raises(Failed, match=path.name):
                    writer.state(place)
            path.write_bytes(content)
        assert writer.state(place) == "whole"
        assert writer.leftovers(place) == []
        for left in ("tmp/left", "states/.progress.json.x.partial", "out/.filled.x.partial", ".out.x.partial"):
            (place / left).mkdir(parents=True)
            assert writer.leftovers(place) == [left]
            (place / left).rmdir()
