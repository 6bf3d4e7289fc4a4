from __future__ import annotations

from pathlib import Path

import pytest

from ladle.errors import UserError
from ladle.grading.grade import GraderConfig, VerdictCache, key_of, salt_of
from ladle.grading.verdict import Judgement, Pair, Verdict


def test_verdicts_survive_the_process_that_found_them(tmp_path: Path) -> None:
    kept = {bytes([n]) * 16: Judgement(Verdict.WRONG, f"reason {n}") for n in range(200)}
    cache = VerdictCache(tmp_path / "deep" / "verdicts.sqlite")
    cache.put_many(kept)
    cache.close()
    again = VerdictCache(tmp_path / "deep" / "verdicts.sqlite")
    assert again.get_many([*kept, b"x" * 16]) == kept
    again.close()


def test_more_keys_than_sqlite_takes_at_once(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "verdicts.sqlite")
    kept = {n.to_bytes(16, "big"): Judgement(Verdict.CORRECT, "") for n in range(3000)}
    cache.put_many(kept)
    assert cache.get_many(list(kept)) == kept
    cache.close()


def test_timeouts_are_not_kept(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "verdicts.sqlite")
    cache.put_many({b"1" * 16: Judgement(Verdict.TIMEOUT, "slow")})
    assert cache.get_many([b"1" * 16]) == {}
    cache.close()


def test_every_field_and_setting_is_in_the_key() -> None:
    pair = Pair("1", "2", "int", 0.1, "cm", True)
    changed = {"gold": "3", "answer": "3", "type": "set", "tolerance": 0.2, "unit": "m", "multiple": False}
    salt = salt_of(GraderConfig())
    keys = {key_of(pair._replace(**{name: value}), salt) for name, value in changed.items()}
    keys |= {key_of(pair, salt), key_of(pair, salt_of(GraderConfig(rounding_digits=6)))}
    assert len(keys) == len(changed) + 2
    assert salt == salt_of(GraderConfig(workers=4, cache="elsewhere"))


def test_a_file_that_is_no_cache_is_the_users_to_mend(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database " * 100)
    with pytest.raises(UserError, match="notes.txt"):
        VerdictCache(path)
