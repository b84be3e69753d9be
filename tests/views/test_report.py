"""The report: one page that travels, made from the files of a run, whatever their names say."""

import csv
import json
import re
import shutil
import tracemalloc
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from salmon import (
    InputError,
    RepairSettings,
    SaliencyMonitor,
    StateError,
    ViewSettings,
    repair,
)
from salmon.cli import main
from salmon.diagnosis import Confusion
from salmon.repairs import Outcome, write_outcome
from salmon.repairs.judge import Rule
from salmon.views import gather, gather_beside, gather_outcomes, write_report
from salmon.views.files import write_pass
from salmon.views.record import LayerRow
from salmon.views.report.page import render
from salmon.views.report.plain import PlainSection, Table
from tests.records import hand_record, run_files
from tests.shifts import some, trained
from tests.trainers import Module, digits, loader, trainer

NAMES = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "cat & dog", "{{ 7 * 7 }}"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two validations of a network whose classes have odd names, and a test with two loaders."""
    folder = tmp_path_factory.mktemp("above") / "run"
    monitor = SaliencyMonitor(
        level=0.7, top_k=5, strict=True, views=ViewSettings(class_names=NAMES, pictures=3),
        sample_ids=lambda batch: [f"<b>{float(x.sum()):.3f}</b>" for x in batch[0]],
    )  # fmt: skip
    module = Module()
    work = trainer(folder, monitor, max_epochs=2)
    work.fit(module, loader(digits(64)), loader())
    work.test(module, [loader(), loader(digits(24, seed=1))], verbose=False)
    return folder


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_a_run_has_a_section_per_stage_and_loader(run: Path) -> None:
    names = [section.name for section in gather(run)]
    assert names == ["test-loader0", "test-loader1", "validation"]
    validation = gather(run)[-1]
    assert validation.history.passes.tolist() == [0, 1]
    assert validation.before is not None
    above = gather(run.parent)
    assert "run: validation" in [section.name for section in above]


def test_names_from_data_are_shown_as_text(run: Path) -> None:
    found = Page(render(gather(run), "a <title>"))
    assert len(found.all("script")) == 1  # ours
    assert not any("onerror" in attributes for _, attributes in found.tags)
    assert not found.all("b")
    for name in NAMES:
        assert name in found.text
    assert "a <title>" in found.text


def test_the_page_loads_nothing_from_elsewhere(run: Path) -> None:
    text = render(gather(run), "run")
    found = Page(text)
    sources = [a["src"] or "" for _, a in found.tags if "src" in a]
    sources += [a["href"] or "" for a in found.all("image")]  # in charts
    assert sources
    assert all(source.startswith(("data:image/png;", "data:image/jpeg;")) for source in sources)
    links = [a["href"] or "" for name, a in found.tags if name != "image" and "href" in a]
    assert all(link.startswith("#") for link in links)
    assert "url(" not in text
    assert "@import" not in text
    policy = next(a["content"] or "" for a in found.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_mistake_is_in_the_table_with_its_top_filters(run: Path) -> None:
    section = gather(run)[-1]
    lines = (run / "salmon_logs" / "flagged-validation-000001.jsonl").read_text().splitlines()
    flags = [flag for flag in map(json.loads, lines) if flag["kind"] == "sample"]
    assert sorted(flag.id for flag in section.flags) == sorted(flag["id"] for flag in flags)
    losses = [flag.loss for flag in section.flags]
    assert losses == sorted(losses, reverse=True)
    text = Page(render([section], "run")).text
    worst = max((f for f in flags if f["top"]), key=lambda flag: flag["loss"])
    for part in (worst["id"], worst["top"][0]["label"], f"{worst['loss']:.3f}"):
        assert part in text
    kinds = Counter(picture.kind for picture in section.pictures)
    assert (kinds["flagged"], kinds["thumbnail"]) == (3, len(flags))


def test_charts_are_vector_graphics_with_a_text_for_those_who_cannot_see_them(run: Path) -> None:
    section = gather(run)[-1]
    graphics = re.findall(r"<svg.*?</svg>", render([section], "run"), re.DOTALL)
    assert len(graphics) == 9
    for graphic in graphics:
        assert 'role="img"' in graphic
        assert len(re.findall(r"<desc [^>]*>([^<]{20,})", graphic)) == 1
    ids = re.findall(r' id="([^"]+)"', render(gather(run), "run"))
    assert len(ids) == len(set(ids))


def test_the_shares_of_layers_that_charts_show_are_in_a_table(tmp_path: Path) -> None:
    (tmp_path / "salmon_logs").mkdir()
    nothing = {"pot": [80, 10, 10], "zscore": [0, 0, 0]}
    for record in (hand_record(0), hand_record(1, counts=nothing)):
        write_pass(tmp_path / "salmon_logs" / f"pass-validation-{record.number:06d}.json", record)
    text = render(gather(tmp_path), "run")
    link = '<a class="find" href="#section-0-layers?is=early">early</a>'
    cells = ["net.a.0", link, "4", "80.0", "80.0", "", "0.0"]
    assert "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" in text
    assert '<th scope="col">most by z-score, %</th>' in text


def test_the_same_files_give_the_same_page(run: Path) -> None:
    assert render(gather(run), "run") == render(gather(run), "run")


def test_a_long_table_is_cut_and_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salmon.views.report.gathering.MOST_FLAGS", 2)
    section = gather(run)[-1]
    text = Page(render([section], "run")).text
    assert f"The 2 of the highest loss, of {section.flagged}" in text
    assert section.flagged > len(section.flags) == 2


def test_pictures_of_another_pass_are_not_shown(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for path in (copy / "salmon_logs").glob("pass-validation-000001.json"):
        path.unlink()
    (section,) = [s for s in gather(copy) if s.name == "validation"]
    assert section.record.number == 0
    assert section.pictures == []
    assert section.flags


def test_a_run_without_mistakes_has_a_report(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for path in (copy / "salmon_logs").glob("*.jsonl"):
        path.unlink()
    text = render(gather(copy), "run")
    assert "Flagged samples</h3>" not in text
    assert "Where are mistakes made?" in text


def spoil(folder: Path, name: str, content: bytes) -> None:
    (folder / "salmon_logs" / name).write_bytes(content)


@pytest.mark.parametrize("content", [b'{"schema": "salmon.pass/1"}', b"\x80\x04."])
def test_a_damaged_record_is_named(run: Path, tmp_path: Path, content: bytes) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    spoil(copy, "pass-validation-000001.json", content)
    with pytest.raises(StateError, match=r"pass-validation-000001\.json"):
        gather(copy)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("flagged-validation-000001.jsonl", b'{"schema": "salmon.flagged/1", "kind": "sample"}'),
        ("flagged-validation-000001.jsonl", b'{"schema": "salmon.flagged/0"}'),
        ("flagged-validation-000001.jsonl", b"[1]"),
        ("pictures-validation.jsonl", b'{"schema": "salmon.picture/2", "number": 1}'),
    ],
)
def test_damaged_flags_or_pictures_cost_these_only_and_are_named(
    run: Path, tmp_path: Path, name: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    spoil(copy, name, content)
    (section,) = [each for each in gather(copy) if each.name == "validation"]
    assert bool(section.flags) == name.startswith("pictures")
    assert bool(section.pictures) == name.startswith("flagged")
    (note,) = section.notes
    assert "left out" in note
    assert name in note
    assert note in unescape(Page(render([section], "run")).text)
    assert main(["report", str(copy), "-o", str(tmp_path / "r.html")]) == 0
    assert name in capsys.readouterr().err


def test_passes_of_an_earlier_run_in_the_same_folder_are_left_out(tmp_path: Path) -> None:
    views = ViewSettings(class_names=NAMES, pictures=1)
    for epochs in (3, 2):
        monitor = SaliencyMonitor(level=0.7, strict=True, views=views)
        trainer(tmp_path, monitor, max_epochs=epochs).fit(Module(), loader(digits(64)), loader())
    assert len(list((tmp_path / "salmon_logs").glob("pass-validation-*.json"))) == 3
    (section,) = gather(tmp_path)
    assert section.record.run == monitor.state_dict()["run"]
    assert section.history.passes.tolist() == [0, 1]
    assert section.before is not None
    assert section.flagged == monitor.results["validation"].misclassified
    assert section.pictures
    assert section.notes == [
        "Left out: passes of earlier runs, or given up by this one, in its folder (1)."
    ]


def test_a_run_that_goes_on_is_still_the_same_run(tmp_path: Path) -> None:
    first = SaliencyMonitor(level=0.7, strict=True)
    trainer(tmp_path, first, max_epochs=2).fit(Module(), loader(digits(64)), loader())
    second = SaliencyMonitor(level=0.7, strict=True)
    second.load_state_dict(first.state_dict())
    trainer(tmp_path, second).validate(Module(), loader(), verbose=False)
    (section,) = gather(tmp_path)
    assert (section.history.passes.tolist(), section.notes) == ([0, 1, 2], [])


def test_passes_that_were_given_up_for_an_earlier_checkpoint_are_left_out(tmp_path: Path) -> None:
    first = SaliencyMonitor(level=0.7, strict=True)
    work = trainer(tmp_path, first, max_epochs=1)
    work.fit(Module(), loader(digits(64)), loader())
    state = first.state_dict()
    for epochs in (3, 1):
        monitor = SaliencyMonitor(level=0.7, strict=True)
        monitor.load_state_dict(state)
        trainer(tmp_path, monitor, max_epochs=epochs).fit(Module(), loader(digits(64)), loader())
    (section,) = gather(tmp_path)
    assert section.history.passes.tolist() == [0, 1]
    assert section.flagged == monitor.results["validation"].misclassified
    (note,) = section.notes
    assert "given up by this one, in its folder (2)" in note


def test_changes_are_not_told_against_another_network(tmp_path: Path) -> None:
    layers = [LayerRow(layer="net.other", group="early", filters=24)]
    (tmp_path / "salmon_logs").mkdir()
    other = hand_record(
        0,
        layers=layers,
        counts={"pot": [100], "zscore": [100]},
        xi={"early": [0] * 30},
        group_intervals=[[1.0, 1.0]],
        layer_intervals=[[1.0, 1.0]],
    )
    for record in (other, hand_record(1)):
        write_pass(tmp_path / "salmon_logs" / f"pass-validation-{record.number:06d}.json", record)
    (section,) = gather(tmp_path)
    assert (section.history.passes.tolist(), section.before) == ([1], None)


def test_more_flags_than_memory_should_hold_are_read_one_by_one(tmp_path: Path) -> None:
    run_files(tmp_path / "salmon_logs")
    path = tmp_path / "salmon_logs" / "flagged-validation-000001.jsonl"
    flags = [json.loads(line) for line in path.read_text().splitlines()]
    flag = next(each for each in flags if each["kind"] == "sample")
    line = json.dumps(flag | {"padding": 90_000 * "x"})
    with path.open("w") as file:
        for _ in range(800):  # 72 MB
            file.write(f"{line}\n")
    tracemalloc.start()
    try:
        (section,) = gather(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert (section.flagged, len(section.flags), section.notes) == (800, 200, [])


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.25, "Validation pass 3 of this run, counted from 0, at step 30. Measuring and fitting "
               "took 1.5 s, 25 % of the pass."),
        (None, "Diagnosis of 200 samples. Measuring and fitting took 1.5 s."),
    ],
)  # fmt: skip
def test_the_page_says_which_pass_it_is_and_what_it_cost(
    tmp_path: Path, share: float | None, words: str
) -> None:
    (tmp_path / "salmon_logs").mkdir()
    record = hand_record(3, share=share)
    write_pass(tmp_path / "salmon_logs" / "pass-validation-000003.json", record)
    assert words in Page(render(gather(tmp_path), "run")).text


def test_the_page_says_that_a_part_was_measured(tmp_path: Path) -> None:
    (tmp_path / "salmon_logs").mkdir()
    record = hand_record(3, measured=70)
    write_pass(tmp_path / "salmon_logs" / "pass-validation-000003.json", record)
    text = Page(render(gather(tmp_path), "run")).text
    words = "70 of 200 samples were measured: mistakes, and right samples by chance, which stand"
    assert text.count(words) == 2  # where it says which pass it is, and under trust


def test_links_to_other_folders_are_not_followed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(InputError, match="holds no passes of the monitor"):
        gather(tmp_path)


def test_the_command_writes_a_page(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(run), "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Sections: test-loader0, test-loader1, validation." in shown
    assert out.read_text().startswith("<!DOCTYPE html>")
    assert out.stat().st_size < 600_000
    assert main(["report", str(run), "-o", str(out)]) == 2
    assert "report.html already exists" in capsys.readouterr().err
    assert main(["report", str(run), "-o", str(out), "--force", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("Written: ")


@pytest.mark.parametrize(("name", "message"), [("", "holds no passes"), ("no", "is no folder")])
def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    assert main(["report", str(tmp_path / name), "-o", str(tmp_path / "r.html")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_a_page_replaces_the_old_one_whole_or_not_at_all(run: Path, tmp_path: Path) -> None:
    out: Any = tmp_path / "report.html"
    out.write_text("old")
    write_report(out, gather(run), "run")
    assert out.read_text() != "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_flagged_samples_are_exported_as_one_table(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "flagged.csv"
    assert main(["export", str(run), "--out", str(out)]) == 0
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert f"({len(rows)} rows)" in capsys.readouterr().out
    assert {row["run"] for row in rows} == {"test-loader0", "test-loader1", "validation"}
    path = run / "salmon_logs" / "flagged-validation-000001.jsonl"
    flags = [json.loads(line) for line in path.read_text().splitlines()]
    flags = [flag for flag in flags if flag["kind"] == "sample"]
    own = [row for row in rows if row["run"] == "validation"]
    assert len(own) == sum(max(1, len(flag["top"])) for flag in flags)
    first = next(flag for flag in flags if flag["top"])
    row = next(row for row in own if row["id"] == first["id"])
    assert (row["place"], row["label"]) == ("1", first["top"][0]["label"])
    assert float(row["p"]) == first["top"][0]["p"]
    assert main(["export", str(run), "--out", str(out)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_run_without_flagged_samples_is_not_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "x.csv")]) == 2
    assert "holds no flagged samples" in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()


def test_filters_that_stand_out_have_a_card_with_whom_they_fail_and_since_when(
    tmp_path: Path,
) -> None:
    run_files(tmp_path / "salmon_logs")
    (section,) = gather(tmp_path)
    (label,) = section.cards
    card = section.cards[label]
    blaming = [flag for flag in section.flags if label in [top.label for top in flag.top]]
    assert sum(each.mistakes for each in card.confusions) == len(blaming)
    assert [number for number, _ in card.trail] == [0, 1]
    page = Page(render([section], "run"))
    assert "all: 9 mistakes, 2.5 expected, adjusted p 0.01" in page.text
    alts = [image.get("alt") for image in page.all("img")]
    assert f"Response of the filter to mistake {section.pictures[0].sample}" in alts
    assert f"Response of the filter to right sample {section.pictures[0].sample + 1}" in alts


def test_classes_have_their_accuracy_with_an_interval_and_a_matrix(tmp_path: Path) -> None:
    (tmp_path / "salmon_logs").mkdir()
    pairs = [
        Confusion(target=0, predicted=1, mistakes=15),
        Confusion(target=1, predicted=0, mistakes=5),
    ]
    record = hand_record(classes=["cat", "dog"], pairs=pairs)  # 15 of 120, 5 of 80
    write_pass(tmp_path / "salmon_logs" / "pass-validation-000000.json", record)
    text = Page(render(gather(tmp_path), "run")).text
    # Wilson's interval by its formula, to a decimal.
    assert "cat 120 15 87.5 80.4 to 92.3 dog" in text
    assert "dog 80 5 93.8 86.2 to 97.3 cat" in text
    assert "cat 105 15 dog 5 75" in text
    many = hand_record(class_samples=[1] * 30, class_mistakes=[1] * 30, pairs=pairs)
    write_pass(tmp_path / "salmon_logs" / "pass-validation-000000.json", many)
    assert 'class="matrix"' not in render(gather(tmp_path), "run")


def test_a_repair_alone_has_a_page_and_another_report_json_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.json").write_text('{"schema": "somebody/1"}')
    with pytest.raises(InputError, match="holds no passes"):
        gather(tmp_path)
    found = repair(
        trained(), some(300, 2, shifted=True), some(300, 1, shifted=False),
        RepairSettings(remedies=("step",), shares=(0.1,)),
    )  # fmt: skip
    write_outcome(tmp_path / "fix", found, {"model": "<b>"})
    assert gather(tmp_path) == []
    (section,) = gather_outcomes(tmp_path)
    assert section.name == "Repair: fix"
    page = Page(render([], "run", [section]))
    assert f"{found.status}. " in page.text
    assert found.reason[1:] in page.text  # with a capital
    assert "<b>" in page.text
    for text in ("Beside other remedies", *[rule.text for rule in rules_of(found)]):
        assert text in page.text
    assert any("svg+xml" in (image["src"] or "") for image in page.all("img"))


def test_a_damaged_repair_costs_itself_only(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "fix").mkdir()
    (tmp_path / "run" / "fix" / "report.json").write_text('{"schema": "salmon.repair/1", "a": 1}')
    assert main(["report", str(tmp_path / "run"), "-o", str(tmp_path / "r.html")]) == 0
    assert "fix: The repair is left out:" in capsys.readouterr().err
    text = Page((tmp_path / "r.html").read_text()).text
    assert "Repair: fix The repair is left out:" in text


def test_runs_with_other_columns_are_exported_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_files(tmp_path / name / "salmon_logs")
    path = tmp_path / "b" / "salmon_logs" / "flagged-validation-000001.jsonl"
    flags = [json.loads(line) | {"more": 7} for line in path.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, flags)))
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "x.csv")]) == 0
    with (tmp_path / "x.csv").open(newline="") as file:
        assert {row["more"] for row in csv.DictReader(file)} == {"", "7"}


def beside(one: Path, other: Path) -> tuple[PlainSection, dict[str, Table]]:
    (section,) = gather_beside(one, other)
    return section, {table.name: table for table in section.tables}


def test_two_epochs_are_beside_each_other_with_who_turned_wrong_and_right(tmp_path: Path) -> None:
    logs = tmp_path / "salmon_logs"
    run_files(logs)
    passes = [logs / f"pass-validation-{number:06d}.json" for number in (0, 1)]
    lines = (logs / "flagged-validation-000000.jsonl").read_text().splitlines()
    flags = [json.loads(line) for line in lines]
    samples = [flag for flag in flags if flag["kind"] == "sample"]
    gone, come = samples[:3], [samples[0] | {"id": f"<i>{n}", "sample": 500 + n} for n in range(2)]
    later = [flag for flag in flags if flag not in gone] + come
    (logs / "flagged-validation-000001.jsonl").write_text("\n".join(map(json.dumps, later)))
    record = json.loads(passes[1].read_text())
    record["misclassified"] -= 1
    record["class_mistakes"][samples[0]["target"]] -= 1
    passes[1].write_text(json.dumps(record))
    section, tables = beside(*passes)
    assert "3 mistakes of A are right in B, and 2 of B are right in A (p 1 by" in section.headline
    assert section.notes == []
    rows = [[str(cell) for cell in row] for row in tables["samples"].rows]
    assert [row[2] for row in rows] == [*(one["id"] for one in come), *(str(s["id"]) for s in gone)]
    assert [row[1] for row in rows] == ["wrong in B"] * 2 + ["wrong in A"] * 3
    glance = {row[0]: row[1:] for row in tables["glance"].rows}
    wrong = len(samples)
    assert glance["mistakes"] == [str(wrong), str(wrong - 1)]
    assert tables["findings"].rows[0][2] == tables["findings"].rows[0][5] == "9"
    page = Page(render([], "epochs", [section]))
    assert "<i>0" in page.text
    assert len(page.all("svg")) == 1
    path = logs / "flagged-validation-000000.jsonl"
    path.write_text(path.read_text().replace('"sampler"', '"position"'))
    section, tables = beside(*passes)  # 0 is another sample in a shuffled pass
    assert "samples" not in tables
    assert "not every mistake of both passes has a flag with an id" in section.notes[0]
    path.write_text(path.read_text().replace('"position"', '"sampler"'))
    one, other = tmp_path / "one", tmp_path / "other"
    shutil.copytree(logs, one / "salmon_logs")
    shutil.copytree(logs, other / "x" / "salmon_logs")
    same, _ = beside(one, other)  # folders of single runs, whatever they are called
    assert "0 mistakes of A are right in B, and 0 of B" in same.headline


def test_passes_of_other_data_are_beside_each_other_without_their_samples(tmp_path: Path) -> None:
    pairs = [
        Confusion(target=0, predicted=1, mistakes=15),
        Confusion(target=1, predicted=0, mistakes=5),
    ]
    few = [Confusion(target=0, predicted=1, mistakes=3)]
    for name, changes in (
        ("a", {"pairs": pairs}),
        ("b", {"samples": 300, "misclassified": 10, "class_samples": [200, 100],
               "class_mistakes": [3, 7], "pairs": few}),
    ):  # fmt: skip
        folder = tmp_path / name / "salmon_logs"
        folder.mkdir(parents=True)
        write_pass(folder / "pass-validation-000000.json", hand_record(**changes))
    section, tables = beside(tmp_path / "a", tmp_path / "b")
    assert "samples" not in tables
    assert "saw different samples" in section.notes[0]
    assert section.headline == "Right: 90.0 % in A, 96.7 % in B."
    assert list(tables["classes"].rows) == [
        ["1", "80", "93.8", "100", "93.0", "-0.8"], ["0", "120", "87.5", "200", "98.5", "+11.0"],
    ]  # fmt: skip
    assert list(tables["pairs"].rows) == [["1", "0", "5", "0", "-5"], ["0", "1", "15", "3", "-12"]]
    assert tables["groups"].rows[1][:3] == ["late", "50.0", "60.0"]


def test_runs_that_have_nothing_in_common_are_refused(tmp_path: Path) -> None:
    for name in ("a/x", "a/y", "b/z", "b/w"):
        run_files(tmp_path / name / "salmon_logs")
    with pytest.raises(InputError, match=r"has x: validation, y: validation and .*nothing stands"):
        gather_beside(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match="c holds no passes"):
        gather_beside(tmp_path / "a", tmp_path / "c")
    shutil.copytree(tmp_path / "a" / "x", tmp_path / "b" / "x")
    (section,) = gather_beside(tmp_path / "a", tmp_path / "b")
    assert section.name == "x: validation: A beside B"
    assert section.notes[0].startswith("Only in one of the two: y: validation, ")


def test_the_command_puts_two_runs_beside_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        run_files(tmp_path / name / "salmon_logs")
    runs = [str(tmp_path / name) for name in ("a", "b")]
    assert main(["report", *runs, "--out", str(tmp_path / "r.html")]) == 0
    assert "Sections: validation: A beside B." in capsys.readouterr().out
    page = Page((tmp_path / "r.html").read_text())
    assert "salmon: a beside b" in page.text
    assert f"A {tmp_path / 'a'}" in page.text


def test_links_to_samples_stand_only_where_the_samples_do(tmp_path: Path) -> None:
    run_files(tmp_path / "salmon_logs")
    for path in tmp_path.glob("salmon_logs/flagged-*"):
        path.unlink()
    page = render(gather(tmp_path), "run")
    assert "-flags" not in page


def rules_of(found: Outcome) -> list[Rule]:
    return [] if found.winner is None else list(found.winner.verdict.rules)
