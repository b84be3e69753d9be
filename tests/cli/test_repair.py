"""``salmon diagnose``, ``repair``, ``apply`` and ``revert``, as a person or a CI job types them."""

import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from pytorch_lightning import Trainer
from safetensors.torch import load_file, save_file

from salmon import Patch
from salmon.cli import main
from tests import ROOT
from tests.project_of_a_user import CONFIG, Net
from tests.shifts import trained

SALMON = Path(sys.executable).parent / "salmon"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a config and a checkpoint that a trainer wrote."""
    module = Net()
    module.net.load_state_dict(trained().state_dict())
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    return tmp_path


GIVEN = ("--config", "config.yaml", "--ckpt_path", "last.ckpt")


def weights(path: Path) -> dict[str, torch.Tensor]:
    found = torch.load(path, weights_only=True)["state_dict"]
    assert isinstance(found, dict)
    return found


def test_a_repair_from_config_to_patched_checkpoint(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["repair", *GIVEN, "--out", "out", "--write_checkpoint"]) == 0
    shown = capsys.readouterr().out
    assert "Repair: accepted." in shown
    assert "Every rule passed." in shown
    assert shown.rstrip().endswith("Written: out")
    assert "passed  reference accuracy" in shown
    names = {path.name for path in (project / "out").iterdir()}
    assert names == {
        "report.json", "report.md", "comment.md", "junit.xml", "tradeoff.svg",
        "patch.safetensors", "repaired.ckpt", "report.html",
    }  # fmt: skip
    report = json.loads((project / "out" / "report.json").read_text())
    assert report["settings"]["shares"] == [0.1]  # of the config's own section
    assert {trial["order"] for trial in report["trials"]} == {"pot", "all"}
    digest = hashlib.sha256((project / "last.ckpt").read_bytes()).hexdigest()
    assert report["context"]["checkpoint"] == f"last.ckpt, SHA-256 {digest}"
    assert report["context"]["apply"].startswith("`salmon apply --patch out/patch.safetensors")
    patch = ("--patch", "out/patch.safetensors")
    assert main(["apply", *patch, "--ckpt_path", "last.ckpt", "--out", "new.ckpt"]) == 0
    repaired, applied = weights(project / "out" / "repaired.ckpt"), weights(project / "new.ckpt")
    before = weights(project / "last.ckpt")
    assert all(torch.equal(repaired[name], applied[name]) for name in before)
    assert not all(torch.equal(before[name], applied[name]) for name in before)
    whole = torch.load(project / "new.ckpt", weights_only=True)
    assert whole["salmon"]["optimizer_states"] == "stale"
    assert main(["apply", *patch, "--ckpt_path", "new.ckpt", "--out", "twice.ckpt"]) == 0
    assert main(["revert", *patch, "--ckpt_path", "twice.ckpt", "--out", "old.ckpt"]) == 0
    reverted = weights(project / "old.ckpt")
    # The optimizer's state fits these weights again.
    assert "salmon" not in torch.load(project / "old.ckpt", weights_only=True)
    assert all(torch.equal(before[name], reverted[name]) for name in before)
    assert "was applied already" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["state.pt", "state.safetensors"])
def test_a_plain_state_dict_stays_one(project: Path, name: str) -> None:
    state = weights(project / "last.ckpt")
    if name.endswith("safetensors"):
        save_file(state, name)
    else:
        torch.save(state, name)
    given = ("--config", "config.yaml", "--ckpt_path", name)
    assert main(["repair", *given, "--quiet", "--out", "out"]) == 0
    patch = ("--patch", "out/patch.safetensors", "--ckpt_path", name)
    assert main(["apply", *patch, "--out", f"new-{name}"]) == 0
    found = load_file(f"new-{name}") if name.endswith("safetensors") else torch.load(f"new-{name}")
    Net().load_state_dict(found)
    assert not all(torch.equal(found[key], state[key]) for key in state)


def test_names_do_instead_of_a_config(project: Path) -> None:
    names = ("--model", "tests.project_of_a_user:Net", "--data", "tests.project_of_a_user:loaders")
    few = ("--repair.prefer", "step", "--repair.shares", "[0.1]")
    code = main(["repair", *names, *GIVEN[2:], "--quiet", "--out", "out", "--seed", "3", *few])
    report = json.loads((project / "out" / "report.json").read_text())
    assert code == {"accepted": 0, "rejected": 1}[report["status"]]
    assert report["settings"]["seed"] == 3
    assert {trial["remedy"] for trial in report["trials"]} == {"step"}


def test_a_report_has_the_command_that_remakes_it(project: Path) -> None:
    few = ("--repair.prefer", "step", "--repair.shares", "[0.1, 0.3]", "--repair.alpha", "1e-300")
    main(["repair", *GIVEN, "--quiet", "--out", "out", "--seed", "3", *few])
    report = json.loads((project / "out" / "report.json").read_text())
    assert set(report["context"]) == {"model", "remake", "checkpoint"}  # there is no patch
    words = shlex.split(report["context"]["remake"].strip("`"))
    assert words[0] == "salmon"
    main([*words[1:], "--quiet", "--out", "again"])
    again = (project / "again" / "report.json").read_bytes()
    assert again == (project / "out" / "report.json").read_bytes()


def test_a_refused_repair_exits_with_1_says_why_and_leaves_its_reports(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bound = ("--repair.alpha", "1e-300")
    assert main(["repair", *GIVEN, "--quiet", "--out", "out", *bound]) == 1
    failed, last = capsys.readouterr().out.splitlines()
    assert failed.startswith("  FAILED  fixes more than it breaks: ")
    assert last.startswith("Repair: rejected. ")
    assert not (project / "out" / "patch.safetensors").exists()
    suite = ElementTree.parse(project / "out" / "junit.xml").getroot()
    assert suite.get("failures") == "1"


def test_nothing_to_repair_exits_with_0_or_as_wished(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_OUTPUT", str(project / "outputs"))
    unshifted = (project / "config.yaml").read_text().replace("samples: 400", "shifted: false")
    (project / "config.yaml").write_text(unshifted)
    assert main(["repair", *GIVEN, "--out", "out"]) == 0
    assert "Repair: nothing. No new sample is a mistake." in capsys.readouterr().out
    assert main(["repair", *GIVEN, "--out", "again", "--exit_nothing", "3"]) == 3
    assert (project / "outputs").read_text() == "status=nothing\nstatus=nothing\n"


def test_a_dry_run_writes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(project.iterdir())
    assert main(["repair", *GIVEN, "--out", "out", "--dry-run"]) == 0
    assert "Net: 48 filters, 400 new and 400 reference samples" in capsys.readouterr().out
    assert sorted(project.iterdir()) == before


def test_the_same_seed_gives_the_same_bytes(project: Path) -> None:
    for name in ("one", "other"):
        main(["repair", *GIVEN, "--quiet", "--out", name, "--seed", "1"])
    for path in sorted((project / "one").iterdir()):
        other = (project / "other" / path.name).read_bytes()
        assert path.read_bytes() == other.replace(b"--patch other/", b"--patch one/")


def test_output_is_not_overwritten_without_force(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "out").mkdir()
    (project / "out" / "precious").write_text("data")
    assert main(["repair", *GIVEN, "--out", "out"]) == 2
    assert "out already exists; a new or empty folder is needed" in capsys.readouterr().err
    assert main(["repair", *GIVEN, "--quiet", "--out", "out", "--force"]) == 0
    assert not (project / "out" / "precious").exists()
    patch = ("--patch", "out/patch.safetensors", "--ckpt_path", "last.ckpt")
    assert main(["apply", *patch, "--out", "last.ckpt"]) == 2
    assert main(["apply", *patch, "--out", "last.ckpt", "--force"]) == 0


def test_a_diagnosis_writes_flags_fits_and_a_summary(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", *GIVEN, "--out", "out"]) == 0
    shown = capsys.readouterr().out
    assert "right samples ranked alike" in shown
    assert "Classes that are confused most" in shown
    summary = json.loads((project / "out" / "diagnosis.json").read_text())
    assert summary["right"] > 0
    assert summary["beyond_chance"] == len([f for f in summary["findings"] if f["target"] is None])
    assert {"label", "mistakes", "expected", "p"} <= set(summary["top"][0])
    assert summary["tails"] == "reference data"
    flags = (project / "out" / "salmon_logs" / "flagged-test-000000.jsonl").read_text().splitlines()
    samples = [line for line in map(json.loads, flags) if line["kind"] == "sample"]
    assert len(samples) == summary["misclassified"] > 50
    assert sum(summary["shares"]["pot"].values()) == pytest.approx(1)
    # The fits of one diagnosis serve another one, and a repair.
    given = ("--fit", "out/salmon_logs/fit-test.safetensors", "--reference", "none")
    assert main(["diagnose", *GIVEN, "--quiet", "--out", "again", *given]) == 0
    again = json.loads((project / "again" / "diagnosis.json").read_text())
    assert (again["tails"], again["shares"]) == ("given", summary["shares"])
    assert main(["repair", *GIVEN, "--quiet", "--out", "fixed", *given[:2]]) == 0
    assert json.loads((project / "fixed" / "report.json").read_text())["fit_was_given"]


PATCHED = ("--ckpt_path", "last.ckpt", "--out", "new.ckpt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["repair"], "no model is given; use --config with the config"),
        (["repair", "--config", "no.yaml"], "config no.yaml cannot be read"),
        (["repair", "--model", "nowhere:Net", "--data", "x:y"], "cannot be imported"),
        (["repair", "--model", "Net"], "package.module:name is needed"),
        (["repair", "--model", "os:sep", "--data", "os:sep"], "a class or function is needed"),
        (["repair", "--config", "config.yaml", "--ckpt_path", "no.ckpt"], "No such file"),
        (["repair", "--config", "config.yaml", "--ckpt_path", "config.yaml"], "cannot be read"),
        (["repair", *GIVEN, "--new", "val"], "new and reference are both 'val'"),
        (["repair", *GIVEN, "--new", "train"], "'test' or 'val' is needed"),
        (["repair", *GIVEN, "--repair.margin", "-1"], "margin is -1.0"),
        (["repair", *GIVEN, "--fit", "last.ckpt"], "last.ckpt cannot be read as saved fits"),
        (["repair", "--config", "config.yaml", "--write_checkpoint"], "needs --ckpt_path"),
        (["apply", "--patch", "last.ckpt", *PATCHED], "cannot be read as a patch"),
    ],
)
def test_wrong_input_exits_with_2_and_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("salmon: ")
    assert len(error.strip().splitlines()) == 1
    assert message in error


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("width: 16", "width: wide", "does not fit"),
        ("width: 16", "width: 8", "checkpoint last.ckpt does not fit Net"),
        ("  class_path: tests.project_of_a_user.Net\n", "", "does not fit"),
        ("project_of_a_user.Net", "project_of_a_user.loaders", "does not fit"),
        ("samples: 400", "samples: 40", "the new data have 40 samples"),
        ("samples: 400", "shuffle: true", "does not keep the order of its dataset"),
        ("shares: [0.1]", "shares: [7]", "shares is (7.0,)"),
        (CONFIG, "- 1", "is no mapping"),
        (CONFIG, "a: [", "cannot be read"),
    ],
)
def test_configs_that_do_not_fit_are_refused(
    project: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    (project / "config.yaml").write_text(CONFIG.replace(old, new))
    assert main(["repair", *GIVEN, "--out", "out"]) == 2
    assert message in capsys.readouterr().err
    assert not (project / "out").exists()


def test_errors_of_the_users_code_are_no_refusals(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = (
        "--model",
        "tests.project_of_a_user:broken",
        "--data",
        "tests.project_of_a_user:loaders",
    )
    assert main(["repair", *names]) == 2
    assert "ZeroDivisionError: in the user's own code" in capsys.readouterr().err


def test_a_checkpoint_that_holds_objects_is_not_unpickled(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = torch.load("last.ckpt", weights_only=True)
    torch.save(found | {"path": Path("x")}, "objects.ckpt")
    given = ("--config", "config.yaml", "--ckpt_path", "objects.ckpt", "--dry-run")
    assert main(["repair", *given]) == 2
    assert "--weights_only false" in capsys.readouterr().err
    assert main(["repair", *given, "--weights_only", "false"]) == 0


def test_the_shell_script_for_ci_runs(project: Path) -> None:
    environment = os.environ | {
        "PATH": f"{SALMON.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(project / "summary.md"),
    }
    environment["GITHUB_OUTPUT"] = str(project / "github")
    script: list[str] = [str(ROOT / "examples" / "ci" / "repair.sh"), "config.yaml", "last.ckpt"]
    done = subprocess.run(
        [*script, "out"], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (project / "out" / "repaired.ckpt").exists()
    compared = json.loads((project / "out" / "comparison" / "report.json").read_text())
    assert compared["status"] == "passed"
    assert (project / "github").read_text().split() == ["status=accepted"]
    assert (project / "summary.md").read_text().startswith("# Repair: accepted")
    done = subprocess.run(
        [*script, "out"], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2


def test_the_shell_script_for_pull_requests_runs(project: Path) -> None:
    environment = os.environ | {
        "PATH": f"{SALMON.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(project / "summary.md"),
    }
    script = [str(ROOT / "examples" / "ci" / "compare.sh"), "config.yaml", "last.ckpt", "last.ckpt"]
    done = subprocess.run(
        [*script, "out", "--gate.max_lost", "0"],
        cwd=project, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (project / "summary.md").read_text().startswith("# Comparison: passed")


@pytest.mark.slow
def test_a_killed_repair_leaves_nothing_or_everything(project: Path) -> None:
    command = [str(SALMON), "repair", *GIVEN, "--quiet", "--out", "out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.DEVNULL)
    while not (project / "out").exists() and process.poll() is None:
        time.sleep(0.01)
    whole = time.perf_counter() - began
    assert process.wait() == 0
    complete = sorted(path.name for path in (project / "out").iterdir())
    chance = random.Random(0)
    left = 0
    for turn in range(8):
        out = project / f"out{turn}"
        process = subprocess.Popen(
            [*command[:-1], str(out)], cwd=project, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        # Most of the kills fall into the end, where files are written.
        time.sleep(whole * (chance.random() if turn < 2 else 0.9 + 0.15 * chance.random()))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():
            left += 1
            assert sorted(path.name for path in out.iterdir()) == complete
            Patch.load(out / "patch.safetensors")
    assert left < 8


def test_a_checkpoint_is_compared_with_its_repair_and_the_gate_decides(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_OUTPUT", str(project / "github"))
    main(["repair", *GIVEN, "--quiet", "--out", "out", "--write_checkpoint"])
    gates = ("--gate.max_lost", "0", "--gate.max-broken", "0.5", "--quiet")
    by_patch = ["compare", *GIVEN, "--candidate", "out/patch.safetensors", *gates, "--out", "a",
        "--pictures",
    ]  # fmt: skip
    assert main(by_patch) == 0
    whole = ["compare", *GIVEN, "--candidate", "out/repaired.ckpt", *gates, "--out", "b"]
    assert main(whole) == 0
    one, other = (json.loads((project / n / "report.json").read_text()) for n in ("a", "b"))
    for report in (one, other):
        del report["context"]
    told = " The patch was made with these samples, so that others would say more."
    assert one["headline"] == other["headline"] + told
    assert one | {"headline": ""} == other | {"headline": ""}
    assert one["samples"] == 400
    shown, bare = ((project / name / "report.html").read_text() for name in ("a", "b"))
    assert (shown.count("<td><img"), bare.count("<td><img")) == (one["fixed"] + one["broken"], 0)
    assert one["fixed"] > one["broken"]
    back = ["--ckpt_path", "out/repaired.ckpt", "--candidate", "last.ckpt", "--out", "c"]
    capsys.readouterr()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert main(["compare", "--config", "config.yaml", *back, "--gate.max_lost", "0.01"]) == 1
    shown = capsys.readouterr().out
    assert "FAILED  accuracy: accuracy lost" in shown
    (annotation,) = [line for line in shown.splitlines() if line.startswith("::")]
    assert annotation.startswith("::error title=salmon%3A accuracy::accuracy lost (observed): ")
    assert "%25" in annotation
    assert "Comparison: failed." in shown
    worse = json.loads((project / "c" / "report.json").read_text())
    assert worse["broken"] == one["fixed"]
    assert worse["context"]["remake"].endswith("--candidate last.ckpt --gate.max_lost 0.01`")
    assert (project / "github").read_text().split()[1:] == [
        "status=passed", "status=passed", "status=failed",
    ]  # fmt: skip


def test_a_diagnosis_is_a_check_where_it_has_gates(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_OUTPUT", str(project / "github"))
    given = ["diagnose", *GIVEN, "--reference", "none"]
    loose = ("--gate.min_accuracy", "0.01", "--gate.max_findings", "9999")
    assert main([*given, *loose, "--gate.max-miscalibration", "1000", "--out", "a"]) == 0
    assert "passed  calibration: values are exceeded" in capsys.readouterr().out
    of_reference = ["diagnose", *GIVEN, "--quiet", "--gate.max-miscalibration", "1000"]
    assert main([*of_reference, "--out", "d"]) == 0
    (_, calibrated) = json.loads((project / "d" / "diagnosis.json").read_text())["gates"]
    assert 1 <= calibrated["value"] < 1000
    assert main([*of_reference, "--fit", "some.safetensors", "--out", "e"]) == 2
    assert "leave out --fit" in capsys.readouterr().err
    capsys.readouterr()
    assert main([*given, "--gate.min_accuracy", "0.999", "--quiet", "--out", "b"]) == 1
    failed, last = capsys.readouterr().out.splitlines()
    assert failed.startswith("  FAILED  accuracy: ")
    assert failed.endswith("at most 0.10% allowed")
    assert last.startswith("Diagnosis: failed. ")
    assert main([*given, "--fit", "no.safetensors", "--out", "f"]) == 2
    assert "--fit is 'no.safetensors', which is no file" in capsys.readouterr().err
    assert main([*given, "--quiet", "--out", "c"]) == 0
    said = (project / "github").read_text().split()
    assert said == ["status=passed", "status=passed", "status=failed"]
    gates = json.loads((project / "b" / "diagnosis.json").read_text())["gates"]
    assert [(rule["name"], rule["passed"]) for rule in gates] == [
        ("trusted", True), ("accuracy", False),
    ]  # fmt: skip
    suite = ElementTree.parse(project / "b" / "junit.xml").getroot()
    assert (suite.get("name"), suite.get("failures")) == ("salmon diagnose", "1")
    assert not (project / "c" / "junit.xml").exists()


def test_slices_are_entries_of_the_batches(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = "tests.project_of_a_user"
    names = ("--model", f"{own}:NetOfMappings", "--data", f"{own}:cameras")
    given = ["compare", *names, *GIVEN[2:], "--candidate", "last.ckpt", "--quiet"]
    assert main([*given, "--slices", "[camera]", "--out", "a"]) == 0
    report = json.loads((project / "a" / "report.json").read_text())
    assert report["context"]["remake"].endswith("""--slices '["camera"]'`""")
    cameras = {g["name"]: g["samples"] for g in report["groups"] if g["kind"] == "camera"}
    assert cameras == {"left": 50, "right": 50}
    capsys.readouterr()
    assert main([*given, "--slices", "[site]", "--out", "b"]) == 2
    assert "no entry 'site' with a value for each" in capsys.readouterr().err


def test_data_that_come_in_another_order_the_second_time_are_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("--model", "tests.project_of_a_user:Net", "--data", "tests.project_of_a_user:noisy")
    code = main(["compare", *names, *GIVEN[2:], "--candidate", "last.ckpt", "--quiet"])
    assert code == 2
    assert "gave other samples in the second pass" in capsys.readouterr().err


def test_a_network_of_another_task_is_repaired_by_its_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    names = ("--model", "tests.other_tasks:Multilabelled", "--data", "tests.other_tasks:loaders")
    few = ("--repair.prefer", "step", "--repair.shares", "[0.3]", "--task", "multilabel")
    given = (*names, "--ckpt_path", "none", *few)
    assert main(["repair", *given, "--quiet", "--out", "out", "--pictures"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["mistake"] == "a label on the wrong side of 0.5"
    assert report["winner"]["new"]["gain"] > 0.1
    assert "class" not in (tmp_path / "out" / "report.md").read_text()
