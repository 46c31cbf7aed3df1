"""The script that prints the paper's tables: its shape, its numbers, its refusals."""

from __future__ import annotations

import json

import pytest

from tests.bundles import running

tables = running.script("tables.py")
CAPTION = "9 studies of 8 subjects"


def write(folder, metrics, **rows):
    """An evaluation folder with these metrics in every row; value, value - 0.1, value + 0.1."""
    folder.mkdir(parents=True, exist_ok=True)
    every = {
        name: {
            metric: {"value": value + shift, "low": value - 0.1, "high": value + 0.1}
            if name != "chance"
            else {"value": 0.25, "low": None, "high": None}
            for metric, value in metrics.items()
        }
        for name, shift in {"chance": 0.0, "untrained": -0.05, "trained": 0.0, **rows}.items()
    }
    (folder / "metrics.json").write_text(json.dumps({"rows": every, "context": {"caption": CAPTION}}))
    return folder


def all_metrics(parts):
    """Every metric of tables 2 to 4b for these columns, each with a value of its own."""
    names = [
        metric.format(part)
        for rows in tables.ROWS.values()
        for metrics in rows.values()
        for metric in metrics
        for part in parts
    ]
    return {name: 0.2 + 0.001 * i for i, name in enumerate(dict.fromkeys(names))}


@pytest.fixture
def evaluations(tmp_path):
    metrics = all_metrics(("ct", "report", "", "20", "50", "5", "10"))
    return {name: write(tmp_path / name, metrics) for name in ("ct_rate", "rad_chest", "mimic_ct")}, metrics


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["tables.py", *map(str, words)])
    code = tables.main()
    return code, *capsys.readouterr()


def cells(said, start):
    (line,) = [line for line in said.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_paper_shape_with_published_rows_and_ours_below(evaluations, monkeypatch, capsys):
    folders, metrics = evaluations
    words = [f"{name}={folder}" for name, folder in folders.items()]
    code, said, _ = run(monkeypatch, capsys, "2", "3", "4a", "4b", "--eval", *words)
    assert code == 0
    titles = [line for line in said.splitlines() if line.startswith("### ")]
    assert [title.split(".")[0] for title in titles] == ["### Table 2", "### Table 3", "### Table 4a", "### Table 4b"]
    assert "CT-RATE → CT | CT-RATE → report | RadChest-CT → CT | MIMIC-CT → report" in said
    own = cells(said, "**ours, own item**")
    assert len(own) == 4
    first, second = (metrics[f"own_item/cxr_to_ct/recall_at_{k}"] for k in (5, 10))
    assert own[0] == " / ".join(
        f"{tables._number(v)} [{tables._number(v - 0.1)}, {tables._number(v + 0.1)}]" for v in (first, second)
    )
    for average in ("weighted", "micro", "macro"):
        assert len(cells(said.split("### Table 4a")[1].split("### Table 4b")[0], f"**ours, {average}**")) == 4
        assert f"**ours, “There is ….”, {average}**" in said
    assert cells(said, "chance, own scan") == [".250 / .250"] * 4
    assert said.count(CAPTION) == 3 + 3 + 2 + 2


def test_published_numbers_are_those_of_the_paper(evaluations, monkeypatch, capsys):
    """Spot checks, typed in again; and every row fills its columns."""
    published = json.loads(tables.PUBLISHED.read_text())
    assert published["2"]["methods"]["X2CT-CLIP Swin"] == [".129/.181", ".047/.078", ".045/.063", ".113/.160"]
    assert published["3"]["methods"]["X2CT-CLIP RN"] == [".716/.438", ".645/.550", ".567/.430"]
    assert published["4a"]["methods"]["X2CT-CLIP Swin"] == [".841/.566", ".847/.579", ".888/.681", ".894/.692"]
    assert published["4b"]["methods"]["BI-Mamba"] == [".663/.412", ".666/.424", ".742/.360", ".733/.369"]
    assert published["5"]["methods"]["gamma"] == [".835/.555", "", "", ".022/.035/.124", ".163/.228/.493"]
    for name in tables.ROWS:
        width = sum(map(len, published[name]["columns"].values()))
        assert {len(row) for row in published[name]["methods"].values()} == {width}


def test_own_data_get_columns_of_their_own(tmp_path, monkeypatch, capsys):
    folder = write(tmp_path / "mine", all_metrics(("ct", "report")))
    code, said, _ = run(monkeypatch, capsys, "2", "--eval", f"mine={folder}")
    assert code == 0
    assert "mine → CT | mine → report |" in said
    assert cells(said, "X2CT-CLIP RN") == [".118/.162", ".048/.077", ".043/.062", ".113/.141", "", ""]
    assert cells(said, "**ours, own scan**")[:4] == [""] * 4


def test_ablation_has_the_mean_of_the_seeds_and_every_seed(tmp_path, monkeypatch, capsys):
    names = [f"few_shot_100/{area}_{average}" for area in tables.AREAS for average in tables.AVERAGES]
    names += [
        f"{way}/cxr_to_{side}/recall_at_{k}"
        for way in ("own_item", "duplicate_gallery")
        for side in ("report", "ct")
        for k in (5, 10, 50)
    ]
    for seed in (0, 1):
        for i, loss in enumerate(tables.LOSSES):
            write(tmp_path / f"seed{seed}" / loss / "eval", dict.fromkeys(names, 0.3 + 0.1 * i + 0.2 * seed))
    code, said, _ = run(monkeypatch, capsys, "5", "--ablation", tmp_path)
    assert code == 0
    assert cells(said, "γ only (0, 1)") == [".835/.555", "", "", ".022/.035/.124", ".163/.228/.493"]
    mean = cells(said, "**ours, both (1, 1), own item, mean ± sd of 2**")
    assert mean[0] == ".600 ± .141 / .600 ± .141"
    assert mean[4] == " / ".join([".600 ± .141"] * 3)
    assert cells(said, "ours, β only (1, 0), own item, seed1")[0] == " / ".join([".500 [.400, .600]"] * 2)
    assert cells(said, "**ours, γ only (0, 1), duplicate gallery, mean ± sd of 2**")
    assert cells(said, "untrained, own item")[0] == ".550 ± .141 / .550 ± .141"


def test_what_a_folder_lacks_is_named_with_the_command_that_makes_it(tmp_path, monkeypatch, capsys):
    folder = write(tmp_path / "mine", all_metrics(("ct", "report", "")))
    code, said, error = run(monkeypatch, capsys, "4a", "--eval", f"mine={folder}")
    assert (code, said) == (65, "")
    assert f"{folder}: has no few_shot_20/auroc_weighted of trained, which table 4a needs; make it with" in error
    assert "configs/protocol.json'" in error
    assert f"--output_dir {folder}" in error
    code, _, error = run(monkeypatch, capsys, "4b", "--eval", f"mimic_ct={folder}")
    assert code == 65
    assert "external.json" in error
    code, _, error = run(monkeypatch, capsys, "2", "--eval", f"ct_rate={tmp_path / 'absent'}")
    assert code == 65
    assert "absent: holds no metrics.json, which table 2 needs; make it with" in error
    (folder / "metrics.json").write_text("{")
    code, _, error = run(monkeypatch, capsys, "2", "--eval", f"ct_rate={folder}")
    assert code == 65
    assert "metrics.json: damaged (JSONDecodeError" in error


def test_a_table_without_its_folder_says_which(tmp_path, monkeypatch, capsys):
    folder = write(tmp_path / "x", all_metrics(("",)))
    code, _, error = run(monkeypatch, capsys, "4b", "--eval", f"ct_rate={folder}")
    assert code == 65
    assert "table 4b has no evaluation; give --eval NAME=FOLDER with NAME one of rad_chest, mimic_ct" in error
    code, _, error = run(monkeypatch, capsys, "5")
    assert code == 65
    assert "give --ablation FOLDER, made by" in error
    code, _, error = run(monkeypatch, capsys, "5", "--ablation", tmp_path)
    assert "holds no seed0, seed1, ..., which table 5 needs" in error
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, capsys, "2", "--eval", "folder")
    assert "'folder' is not NAME=FOLDER, such as ct_rate=eval/ct_rate" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tables.py", "ablation.py"])
def test_help_teaches(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        running.script(name).main()
    said = capsys.readouterr().out
    assert said.count("python x2ct/scripts/") >= 3
    assert "examples" in said
