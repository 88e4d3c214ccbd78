"""Dice of models against their time: the command's table and picture."""

from __future__ import annotations

import pytest

from training import trade
from training.trade import Point

POINTS = [Point("a", 256, 0.010, 0.96, 0.65), Point("b", 320, 0.021, 0.97, 0.70)]


def run(monkeypatch, plot):
    monkeypatch.setattr("sys.argv", ["trade", "a", "b", "--shared", "data", "--plot", str(plot)])
    trade.main()


def test_table_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trade, "measured", lambda names, shared: POINTS)
    run(monkeypatch, tmp_path / "trade.png")
    assert "| b | 320 | 21 | 0.970 | 0.700 |" in capsys.readouterr().out
    assert (tmp_path / "trade.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(trade, "measured", lambda names, shared: pytest.fail("the picture comes first"))
    with pytest.raises(SystemExit, match=r"^error: .*does not exist; create it first"):
        run(monkeypatch, tmp_path / "missing/trade.png")


def test_a_picture_is_complete_or_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(trade, "measured", lambda names, shared: POINTS)
    (tmp_path / "trade.png").write_text("of an earlier run")

    def torn(points, png):
        png.write_bytes(b"\x89PNG")
        raise KeyboardInterrupt

    monkeypatch.setattr(trade, "plot", torn)
    with pytest.raises(SystemExit, match=r"^interrupted$"):
        run(monkeypatch, tmp_path / "trade.png")
    assert (tmp_path / "trade.png").read_text() == "of an earlier run"
