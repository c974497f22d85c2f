"""The statistics of the loss study on logits with known answers, and its page."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from sklearn.metrics import average_precision_score, roc_auc_score
from study_inputs import CONFIG, PREVALENCES, StudyInputs, mean_of, study_of, whole_study

from benchmarks.study.arms import Study
from benchmarks.study.comparisons import compare
from benchmarks.study.groups import GROUPS, base_of, label, members
from benchmarks.study.inputs import SELECTION, Logits, StudyData
from benchmarks.study.results import write
from benchmarks.study.statistics import Arm, Bootstrap, Difference, corrected, draw_within_folds, random_ap


def images(patients: list[str], fold: list[int], targets: list[list[float]]) -> StudyData:
    names = tuple(f"finding {number}" for number in range(len(targets[0])))
    return StudyData(
        np.array(patients), np.array(targets), np.array(fold), names, dict.fromkeys(names, "head"), dict.fromkeys(names, 1)
    )  # fmt: skip


def test_metrics_are_those_of_scikit_learn_within_each_fold_and_averaged(tmp_path: Path) -> None:
    inputs = StudyInputs(tmp_path, folds=3)
    logits = [
        inputs.logits(1.5) + 5 * fold for fold in range(3)
    ]  # of different scales: pooled, AP would be another
    for fold in range(3):
        inputs.run("main", "bce", fold, logits=logits[fold])
    study = study_of(inputs)
    for name, metric in (("ap", average_precision_score), ("auroc", roc_auc_score)):
        for level, columns in (("macro", slice(None)), ("Mass", [1])):
            by_fold = [
                mean_of(metric, inputs.targets[inputs.fold == fold][:, columns], logits[fold][inputs.fold == fold][:, columns])
                for fold in range(3)
            ]  # fmt: skip
            value = study.bootstrap.mean(study.main["bce"], name, level, (0, 1, 2))
            assert value is not None
            assert value.values[0] == pytest.approx(np.mean(by_fold), abs=1e-12)


def test_two_identical_arms_differ_by_exactly_0(tmp_path: Path) -> None:
    inputs = StudyInputs(tmp_path)
    for fold in range(2):
        logits = inputs.logits(1.5)
        for arm in ("bce", "ral"):
            inputs.run("main", arm, fold, logits=logits)
    found = compare(study_of(inputs))
    for metric in ("ap", "auroc", "f1", "brier", "selection_ap"):
        one = found.find("losses", "ral", "bce", metric, "macro")
        assert one is not None
        assert (one.value, one.low, one.high, one.p, one.standard_error) == (0, 0, 0, 1, 0), metric


def test_a_resample_draws_whole_patients_within_their_fold() -> None:
    fold = np.repeat([SELECTION, 0, 1, 1], [4, 9, 8, 8])
    patients = [f"p{row // 2 if row < 13 else row}" for row in range(29)]
    fold[[row for row in range(29) if patients[row] == "p6"]] = 0
    data = images(patients, fold.tolist(), [[0.0]] * 29)
    resamples = draw_within_folds(data, 300, 0, 0.95)
    ids = sorted({one for one, number in zip(patients, fold, strict=True) if number != SELECTION})
    assert resamples.weights.shape == (len(ids), 301)
    of_fold = dict(zip(patients, fold, strict=True))
    for number in (0, 1):
        rows = [index for index, one in enumerate(ids) if of_fold[one] == number]
        assert (resamples.weights[rows].sum(axis=0) == len(rows)).all()
    rows = [one for one, number in zip(patients, fold, strict=True) if number != SELECTION]
    assert [ids[index] for index in resamples.patient] == rows
    assert resamples.weights[:, 1:].std() > 0
    # The order of the rows does not change the draw.
    back = draw_within_folds(images(patients[::-1], fold[::-1].tolist(), [[0.0]] * 29), 300, 0, 0.95)
    assert np.array_equal(back.weights, resamples.weights)


def test_both_arms_are_evaluated_on_the_same_resamples(tmp_path: Path) -> None:
    """A constant added to the logits changes no rank, so the difference is 0 in every resample, not only on average."""
    inputs = StudyInputs(tmp_path)
    logits = inputs.logits(1.0)
    inputs.run("main", "bce", 0, logits=logits)
    inputs.run("main", "ral", 0, logits=logits + np.float32(8))
    study = study_of(inputs)
    first, second = (
        study.bootstrap.mean(study.main[name], "auroc", "macro", (0,)) for name in ("bce", "ral")
    )
    assert first is not None
    assert second is not None
    assert np.std(first.values) > 0.005
    assert np.allclose(first.values, second.values, atol=1e-4)


def test_a_finding_without_positives_in_a_fold_is_left_out_there_and_not_counted_as_0(tmp_path: Path) -> None:
    inputs = StudyInputs(tmp_path)
    inputs.targets[inputs.fold == 1, 2] = 0
    logits = [inputs.logits(1.5) for _ in range(2)]
    for fold in range(2):
        inputs.run("main", "bce", fold, logits=logits[fold])
    study = study_of(inputs)
    parts = {}
    for name, column in zip(PREVALENCES, range(4), strict=True):
        values = [
            average_precision_score(inputs.targets[inputs.fold == fold, column], logits[fold][inputs.fold == fold, column])
            for fold in ((0,) if name == "Hernia" else (0, 1))
        ]  # fmt: skip
        parts[name] = np.mean(values)
    for level, value in (("Hernia", parts["Hernia"]), ("macro", np.mean(list(parts.values())))):
        ap = study.bootstrap.mean(study.main["bce"], "ap", level, (0, 1))
        assert ap is not None
        assert ap.values[0] == pytest.approx(value, abs=1e-12)
    assert study.bootstrap.left_out((0, 1)) == [("Hernia", 1)]
    assert study.bootstrap.mean(study.main["bce"], "ap", "Hernia", (1,)) is None
    write(inputs.state, inputs.out, CONFIG)
    assert (
        "no positive or no negative image of it: Hernia in fold 1." in (inputs.out / "RESULTS.md").read_text()
    )


def test_calibration_and_threshold_come_from_the_selection_set(tmp_path: Path) -> None:
    """Brier score and F1 do not change with the scale of the logits, but do with the labels of the selection set."""
    inputs = StudyInputs(tmp_path)
    logits = inputs.logits(1.5)
    inputs.run("main", "bce", 0, logits=logits)
    inputs.run("main", "ral", 0, logits=logits / 3 + 1)
    study = study_of(inputs)

    def values(study: Study, arm: str) -> list[float]:
        means = [study.bootstrap.mean(study.main[arm], metric, "macro", (0,)) for metric in ("f1", "brier")]
        return [float(one.values[0]) for one in means if one]

    first = values(study, "bce")
    assert values(study, "ral") == pytest.approx(first, abs=0.01)
    labels = inputs.targets[inputs.fold == 0]
    assert 0 < first[1] < (labels.mean(axis=0) * (1 - labels.mean(axis=0))).mean()
    selection = inputs.fold == SELECTION
    inputs.targets[selection] = 1 - inputs.targets[selection]
    assert values(study_of(inputs), "bce")[1] > 0.2


def test_holm_by_hand_and_mirrored_pairs_are_one_test() -> None:
    def one(arm: str, baseline: str, p: float, level: str = "macro") -> Difference:
        return Difference("losses", arm, baseline, "ap", level, 5, 14, 0.1, 0.0, 0.2, p, 0.05)

    p = {("a", "b"): 0.01, ("b", "a"): 0.01, ("a", "c"): 0.04, ("d", "b"): 0.03, ("d", "c"): 0.005}
    found = corrected([*(one(*pair, value) for pair, value in p.items()), one("a", "b", 0.5, "tail")])
    # Of four tests, sorted: 0.005 · 4, 0.01 · 3, 0.03 · 2, and 0.04 · 1, which may not be below the one before.
    assert [each.p_holm for each in found] == pytest.approx([0.03, 0.03, 0.06, 0.06, 0.02, 0.5])


def test_the_chance_of_ap_is_that_of_random_orders() -> None:
    labels = np.array([1.0] * 3 + [0.0] * 47 + [np.nan])
    generator = np.random.default_rng(0)
    drawn = [average_precision_score(labels[:50], generator.random(50)) for _ in range(1000)]
    assert random_ap(labels) == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / np.sqrt(1000))
    assert random_ap(labels) > 3 / 50


def test_replicates_are_around_the_value_although_ap_rises_in_resamples(tmp_path: Path) -> None:
    inputs = StudyInputs(tmp_path)
    for fold in range(2):
        inputs.run("main", "bce", fold, 1.0)
    study = study_of(inputs)
    for level in ("macro", "Hernia"):
        ap = study.bootstrap.mean(study.main["bce"], "ap", level, (0, 1))
        assert ap is not None
        assert np.mean(ap.values[1:]) == pytest.approx(ap.values[0], abs=5e-3)
        interval = study.bootstrap.resamples.interval(ap)
        assert interval.low is not None
        assert interval.high is not None
        assert interval.low < ap.values[0] < interval.high


def test_the_arm_of_fold_0_is_the_run_at_the_best_rate_on_the_selection_set(tmp_path: Path) -> None:
    inputs = StudyInputs(tmp_path)
    runs = {
        rate: inputs.run("rate", "bce", 0, strength, learning_rate=rate, selection_macro_ap=ap)
        for rate, strength, ap in (
            (1e-3, 1.0, 0.4),
            (3e-4, 0.5, 0.4),
            (3e-3, 3.0, 0.3),
        )  # the last is best in test
    }
    inputs.run("rate", "ral", 0, 1.0, learning_rate=1e-3)
    study = study_of(inputs)
    assert study.rates[0].best == 3e-4  # the lowest of equal ones
    expected = next(row for row in inputs.rows if row["run"] == runs[3e-4])
    ap = study.bootstrap.mean(study.main["bce"], "ap", "macro", (0,))
    assert ap is not None
    assert ap.values[0] == pytest.approx(expected["test_macro_ap"])
    assert "ral" not in study.main  # two of its rates are still to be tried


def test_runs_of_other_settings_are_not_mixed_with_those_of_an_arm(tmp_path: Path) -> None:
    inputs = StudyInputs(tmp_path)
    for fold in range(2):
        inputs.run("main", "bce", fold, 1.0)
    inputs.run("main", "bce", 0, 3.0, epochs=3)
    study = study_of(inputs)
    assert {fold: len(scores) for fold, scores in study.main["bce"].scores.items()} == {0: 1, 1: 1}
    assert list(study.others) == ["resnet18, 64 px, 3 epochs, batch 128, float32, cpu"]


def test_the_best_recipe_is_chosen_on_the_selection_set(tmp_path: Path) -> None:
    inputs = StudyInputs(tmp_path)
    for fold in range(2):
        inputs.run("main", "bce", fold, 3.0, selection_macro_ap=0.2)  # the best in test
        inputs.run("main", "ral", fold, 1.0, selection_macro_ap=0.3)
        inputs.run("main", "asl", fold, 1.0, selection_macro_ap=0.4)
    inputs.run("main", "focal", 0, 1.0, selection_macro_ap=0.9)  # not on every fold
    study = study_of(inputs)
    best = study.best()
    assert best is not None
    assert best.name == "asl"
    last = compare(study).statements[-1]
    assert (last.arm and last.arm.name, last.baseline and last.baseline.name) == ("asl", "ral")


def test_a_comparison_and_its_mirror_are_plotted_once(tmp_path: Path) -> None:
    inputs = StudyInputs(tmp_path)
    for fold in range(2):
        for arm, strength in (("bce", 3.0), ("ral", 1.0), ("reference", 0.5)):
            inputs.run("main", arm, fold, strength)
    comparisons = compare(study_of(inputs))
    assert [one.title for one in comparisons.statements][1:] == ["RAL − BCE", "Best other recipe − RAL"]
    pairs = [(arm.name, baseline.name) for _, arm, baseline in comparisons.pairs()]
    assert pairs == [("ral", "reference"), ("ral", "bce")]


def test_intervals_of_differences_cover_the_expected_difference(tmp_path: Path) -> None:
    """A light simulation: the interval of macro AP and AUROC covers the expected difference in about 95 % of samples."""
    config = CONFIG.model_copy(update={"replicates": 100})
    generator = np.random.default_rng(0)
    found: dict[str, list[tuple[float, float, float]]] = {"ap": [], "auroc": []}
    for _ in range(150):
        patient = np.repeat(np.arange(90), generator.integers(1, 4, 90))
        targets = (generator.random((len(patient), 2)) < (0.3, 0.15)).astype(float)
        fold = patient % 3 - 1
        data = StudyData(
            patient.astype(str), targets, fold, ("a", "b"), {"a": "head", "b": "head"}, {"a": 1, "b": 1}
        )
        bootstrap = Bootstrap(data, config, config.replicates)
        shared = generator.normal(size=90)[patient][:, None] + generator.normal(size=targets.shape)
        arms = []
        for strength in (1.0, 1.6):
            scores = {}
            for number in (0, 1):
                x = strength * targets + shared + 0.5 * generator.normal(size=targets.shape)
                logits = Logits(x[fold == number], x[fold == SELECTION], True)
                scores[number] = [bootstrap.score(logits, number, calibrated=False)]
            arms.append(Arm(str(strength), scores, {}))
        for metric, values in found.items():
            one = bootstrap.difference("t", (arms[1], arms[0]), metric, "macro", (0, 1))
            assert one is not None
            assert one.low is not None
            assert one.high is not None
            values.append((one.value, one.low, one.high))
    for metric, values in found.items():
        value, low, high = np.array(values).T
        expected = value.mean()
        covered = np.mean((low <= expected) & (expected <= high))
        assert 0.90 <= covered <= 0.99, metric
        assert np.mean(low > 0) > 0.3, metric  # the difference is found in many samples


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> StudyInputs:
    """A study with every stage, and its page."""
    inputs = whole_study(tmp_path_factory.mktemp("study"))
    write(inputs.state, inputs.out, CONFIG)
    return inputs


def outputs(folder: Path) -> dict[str, bytes]:
    """Content of the files that the command writes."""
    files = [folder / "RESULTS.md", *sorted((folder / "results").iterdir())]
    return {file.name: file.read_bytes() for file in files}


def test_the_page_has_every_table_plot_and_statement(whole: StudyInputs) -> None:
    text = (whole.out / "RESULTS.md").read_text()
    assert "Research software, not a medical device." in text
    assert text.count("Not run.") == 1  # the audit, whose tables come from another command
    for statement in ("Default (RAL) − reference recipe", "RAL − BCE", "Best other recipe − RAL"):
        (line,) = re.findall(rf"^- \*\*{re.escape(statement)}\*\*.*", text, re.MULTILINE)
        assert re.search(r"macro AP [+-]0\.\d{3} \([+-]0\.\d{3} to [+-]0\.\d{3}; Holm-corrected p", line)
        assert "tail AP [" not in line
    for title in (
        "Losses and recipes",
        "Losses from other fields",
        "Learning rates",
        "Changes to an arm",
        "Other settings",
    ):
        assert f"\n## {title}\n" in text
    assert "| Dice |" in text.partition("## Losses from other fields")[2].partition("\n## ")[0]
    assert "BCE + permuted labels" in text.partition("## Losses and recipes")[2].partition("\n## ")[0]
    plots = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(plots) == 4  # no difference of tail AP has an interval: too few positive images
    assert {path.name for path in (whole.out / "results").glob("*.png")} == {
        Path(plot).name for plot in plots
    }
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count(" | ") for line in table.splitlines()}) == 1, table


def test_the_same_inputs_give_the_same_bytes(whole: StudyInputs) -> None:
    before = outputs(whole.out)
    for name in before.keys() - {"runs.csv"}:
        for path in whole.out.rglob(name):
            path.unlink()
    write(whole.state, whole.out, CONFIG)
    assert outputs(whole.out) == before
    for name, content in before.items():
        if name.endswith(".png"):
            assert b"tIME" not in content
            assert b"matplotlib" not in content


def test_differences_csv_has_the_differences_of_the_page(whole: StudyInputs) -> None:
    table = pd.read_csv(whole.out / "results" / "differences.csv")
    row = table.set_index(["table", "arm", "baseline", "metric", "level"]).loc[
        ("losses", "asl", "bce", "ap", "macro")
    ]
    cell = f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
    assert f"| ASL | {cell}" in (whole.out / "RESULTS.md").read_text()
    assert row["detectable"] == pytest.approx(2.8016 * row["standard_error"], rel=1e-3)
    mirrored = table[(table["table"] == "losses") & (table["arm"] == "bce") & (table["baseline"] == "ral")]
    straight = table[(table["table"] == "losses") & (table["arm"] == "ral") & (table["baseline"] == "bce")]
    assert np.allclose(mirrored["difference"], -straight["difference"].to_numpy(), atol=1e-6)
    assert np.allclose(mirrored["p_holm"], straight["p_holm"].to_numpy(), equal_nan=True)
    assert set(table["table"]) >= {
        "headline",
        "losses",
        "other_fields",
        "extra",
        "thin 1",
        "thin 10",
        "thin 100",
    }


def test_stages_that_are_missing_are_named(tmp_path: Path) -> None:
    inputs = StudyInputs(tmp_path)
    inputs.run("main", "bce", 0)
    inputs.write()
    write(inputs.state, inputs.out, CONFIG)
    text = (inputs.out / "RESULTS.md").read_text()
    assert text.count("Not run.") == 10
    assert "- **RAL − BCE**: not run on every fold." in text
    assert "- Negative control: not run." in text
    assert "### Only fold 0: 1 arm" in text


def test_the_control_has_a_table_of_its_own_if_no_arm_ran_on_its_folds_only(tmp_path: Path) -> None:
    inputs = StudyInputs(tmp_path)
    for fold in range(2):
        inputs.run("main", "bce", fold)
    inputs.run("control", "ral", 0, 0.0)
    inputs.write()
    write(inputs.state, inputs.out, CONFIG)
    text = (inputs.out / "RESULTS.md").read_text()
    assert "### Only fold 0: negative control" in text
    assert "| RAL + permuted labels |" in text


def test_every_arm_is_in_one_group_and_has_a_name() -> None:
    names = ["ral", "dice", "bce", "z_loss"]
    assert [members(group, names) for group in GROUPS] == [["bce", "ral"], ["dice", "z_loss"]]
    assert (label("ral+flip_tta"), label("dice"), base_of("ral+flip_tta")) == (
        "RAL + flip tta",
        "Dice",
        "ral",
    )


def test_the_command_writes_the_page(whole: StudyInputs, run) -> None:  # type: ignore[no-untyped-def]
    (whole.out / "RESULTS.md").unlink()
    printed = run(
        "python", "-m", "benchmarks.study.results", "--state", str(whole.state), "--out", str(whole.out), cwd=ROOT
    ).stdout  # fmt: skip
    assert printed == f"{whole.out / 'RESULTS.md'} is written\n"
    assert (whole.out / "RESULTS.md").is_file()
