"""Proofs of a password, which do not show it."""

from __future__ import annotations

from pathlib import Path

from spegel_consul.http.basic_auth import Credentials


def credentials(path: Path, *lines: str) -> Credentials:
    path.write_text("".join(f"{line}\n" for line in lines))
    return Credentials(path)


def test_each_line_of_the_file_proves(tmp_path: Path) -> None:
    old, new = "spegel:old", "spegel:new"
    before, while_replaced = credentials(tmp_path / "a", old), credentials(tmp_path / "b", new, old)
    proof = before.proof("message")
    assert "old" not in proof
    assert len(proof) == 64
    assert while_replaced.proves("message", proof)
    assert not before.proves("message", while_replaced.proof("message"))


def test_a_proof_is_of_one_message(tmp_path: Path) -> None:
    known = credentials(tmp_path / "a", "spegel:secret")
    for wrong in ("", "x", "é" * 64, known.proof("other"), known.proof("message").upper()):
        assert not known.proves("message", wrong)
