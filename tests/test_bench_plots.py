"""Pictures of the benchmark's records: made from the files alone, every title inside its picture."""

import pytest

from bench import plots, records
from tests.test_bench import MACHINE, row


def test_plots_come_from_the_csv_alone(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    path = tmp_path / "cpu.csv"
    shapes_and_peers = [(shape, peer) for shape in ("small", "dense", "agent", "more") for peer in ("gigpo_fast", "eager", "bare GEMMs")]
    for ratio in (3.0, 1.5):  # two runs: the pictures show the last
        made = [row(shape=shape, peer=peer, ratio=ratio, error_value=None if "GEMM" in peer else 0.0) for shape, peer in shapes_and_peers]
        records.append(path, MACHINE, made)
    assert {found.ratio for _, found in plots.latest(records.read(path))} == {1.5}
    assert plots.main([str(path), "--out", str(tmp_path / "pictures")]) == 0
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [picture.name for picture in pictures] == ["cpu-linear_policy_loss-memory.png", "cpu-linear_policy_loss-ratios.png"]
    assert all(picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5000 for picture in pictures)
    assert str(pictures[0]) in capsys.readouterr().out


@pytest.mark.parametrize("shapes_of_it", [1, 2, 4])
def test_every_title_and_label_fits_into_its_picture(shapes_of_it, tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure", reason="pip install matplotlib")
    save, outside, seen = figure.Figure.savefig, [], []

    def watched(self, *given, **named):
        save(self, *given, **named)
        self.canvas.draw()  # at the figure's own resolution, in which extents are told
        for axis in self.axes:
            texts = [axis.title, axis.xaxis.label, axis.yaxis.label, *(axis.get_yticklabels() if axis.patches else ())]
            for text in [*texts, self._suptitle] if axis.get_visible() else ():
                box, page = text.get_window_extent(), self.bbox
                seen.append(text.get_text())
                if box.width and not (page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1):
                    outside.append(text.get_text())

    monkeypatch.setattr(figure.Figure, "savefig", watched)
    where = MACHINE._replace(device="Some(R) Processor(TM) of a Long Name @ 2.10GHz, 2 cores, AVX512", torch="2.13.0+cpu", commit="393d34592ccc-dirty")
    for shape in ("small m0.25 a0.3 frozen", "dense", "agent", "more")[:shapes_of_it]:
        records.append(tmp_path / "cpu.csv", where, [row(shape=shape, peer=peer) for peer in ("gigpo_fast", "eager", "bare GEMMs, idle rows forward only")])
    assert plots.main([str(tmp_path / "cpu.csv")]) == 0
    assert any("Processor" in text for text in seen) and not outside


def test_plots_of_nothing_say_what_to_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, "FOLDER", tmp_path)
    assert plots.main([]) == 1
    assert "run `make bench`" in capsys.readouterr().err
