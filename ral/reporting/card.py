"""The model card: intended use, data, training, metrics and limitations of a model.

Markdown with the front matter that Hugging Face reads (https://huggingface.co/docs/hub/model-cards).
"""

import io
import re
from collections.abc import Sequence

from ruamel.yaml import YAML

from ral.evaluation.localisation import read_table
from ral.evaluation.results import Estimate, Metrics
from ral.evaluation.specs import LABELS, MEANS
from ral.evaluation.table_rows import AuditRow, CharacteristicsRow, FindingRow, OperatingRow, read_rows
from ral.reporting import audit, calibration, data_tables, localisation, robustness, tables
from ral.reporting.report import Inputs, rows_of
from ral.reporting.tables import Table
from ral.wording import PHANTOM, RESEARCH, escape, interval, known, pluralize, sealed

# Text without Markdown or HTML: viewers that do not know front matter render it as part of the card.
_PLAIN = re.compile(r"(?:[^\W_]|[ .,:;%()+–-])*")

# Placeholder for a title that must be escaped, which the YAML writer does not do.
_TITLE = "TITLE-OF-THE-CARD"


# MODEL: the folder of the release, or of the project.
_USE = """```python
import ral
model = ral.load_model("MODEL")  # folder of the release, or of the project after a run
table = model.predict(["image.png", "scan.dcm"])  # per finding: calibrated probability, decision, raw logit
```"""


def card(inputs: Inputs) -> str:
    """Render the model card as Markdown; the same inputs give the same bytes."""
    rows = rows_of(inputs.findings)
    mark = "PHANTOM: " if inputs.phantom else ""
    parts = [
        f"---\n{_front(inputs)}---",
        f"# {mark}{escape(inputs.params.report.title)}",
        *([f"**{PHANTOM}**"] if inputs.phantom else []),
        f"**{RESEARCH}.**",
    ]
    for title, body in _sections(inputs, rows).items():
        parts += [f"## {mark}{title}", *body]
    return "\n\n".join(parts) + "\n"


def _front(inputs: Inputs) -> str:
    """The front matter. The licence of the weights is unknown to the program."""
    metrics = inputs.metrics
    source = inputs.params.data.source
    tags = ["chest-x-ray", "multi-label-classification", "long-tailed", "ral", "not-a-medical-device"]
    title = ("PHANTOM: " if inputs.phantom else "") + inputs.params.report.title
    results = [
        {
            "type": name.lower().replace(" ", "_"),
            "name": f"{name} ({metrics.percent} interval {interval(metric.low, metric.high)})",
            "value": metric.value,
        }
        for name, metric in _headline(metrics).items()
        if known(metric.value)
    ]
    content: dict[str, object] = {
        "license": "other",
        "license_name": "unknown",
        "pipeline_tag": "image-classification",
        "tags": [*tags, *(["phantom"] if inputs.phantom else [])],
    }
    if results:
        task = {"type": "image-classification", "name": "Findings of chest X-ray images"}
        name = "Phantom images (synthetic)" if inputs.phantom else f"Images of the source {source}"
        dataset = {"type": "phantom" if inputs.phantom else source, "name": name, "split": "test"}
        content["model-index"] = [
            {
                "name": title if _PLAIN.fullmatch(title) else _TITLE,
                "results": [{"task": task, "dataset": dataset, "metrics": results}],
            }
        ]
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 200
    yaml.allow_unicode = True
    file = io.StringIO()
    yaml.dump(content, file)
    return file.getvalue().replace(f"name: {_TITLE}\n", f"name: {_escaped(title)}\n", 1)


def _escaped(text: str) -> str:
    """Text as a quoted YAML scalar in which all special characters are escaped."""
    return '"' + "".join(c if _PLAIN.fullmatch(c) else f"\\U{ord(c):08x}" for c in text) + '"'


def _headline(metrics: Metrics) -> dict[str, Estimate]:
    means = {f"Macro {LABELS[name]}": metrics.macro[name] for name in MEANS}
    return means | {f"CXR-LT {name}": metric for name, metric in metrics.cxr_lt.items()}


def _sections(inputs: Inputs, rows: Sequence[FindingRow]) -> dict[str, list[str]]:
    """Title -> paragraphs."""
    return {
        "Model overview": [
            "Scores frontal chest X-ray images for "
            f"{pluralize(len(inputs.model.findings), 'finding', 'findings')}, multi-label. "
            "The outputs are raw logits; their sigmoid is not a probability. Calibrated scores require the "
            "calibration maps in "
            "calibration.json, which `predict` applies:",
            _USE,
            _table(tables.model(inputs.model, len(inputs.history))),
        ],
        "Intended use": [
            "Research on long-tailed, multi-label classification of chest X-ray images: comparing losses, "
            "networks and training runs, and studying their errors.",
        ],
        "Out of scope": [
            "- Diagnosis, triage, treatment or any other clinical decision.\n"
            "- Other kinds of images: lateral views, other body parts, other modalities.\n"
            "- Images of other sources, populations or devices than those below, without a separate evaluation.\n"
            "- Findings that are not listed, and any claim that an image is normal.",
        ],
        "Data": _data(inputs, rows),
        "Training": _training(inputs),
        "Metrics": _metrics(inputs, rows),
        "Calibration and thresholds": _calibration(inputs, rows),
        "Audit": _audit(inputs),
        **_robustness(inputs),
        "Limits": LIMITS,
    }


LIMITS = [
    "- The labels are those of the data set, including its errors; the metrics measure agreement with them.\n"
    "- PPV, NPV and AP depend on the prevalence of the findings in the test images.\n"
    "- Test and training images are from the same source: performance on other data is unknown.\n"
    "- Small groups and rare findings have wide intervals; no flag in the audit does not mean no gap.\n"
    "- The licence of the weights depends on the licences of the data and of the pretrained "
    "weights, which this program does not know.",
    "[docs/reporting_checklist.md](../docs/reporting_checklist.md) in the repository of the pipeline lists "
    "which items of the reporting guidelines CLAIM and TRIPOD+AI this card and the report answer, and "
    "which they do not.",
]


def _data(inputs: Inputs, rows: Sequence[FindingRow]) -> list[str]:
    dataset, params = inputs.dataset, inputs.params.data
    notes = [data_tables.notes(dataset), data_tables.same_images(dataset)]
    characteristics = read_rows(inputs.characteristics, CharacteristicsRow)
    return [
        f"{dataset.images:,} images of {dataset.patients:,} patients; source: "
        f"{'phantom images (synthetic)' if inputs.phantom else escape(params.source)}; views: "
        f"{', '.join(params.views) if params.views else 'all'}.",
        *(_table(part) for part in notes if part.rows),
        _table(data_tables.split(dataset)),
        _table(data_tables.characteristics(characteristics)),
        _table(data_tables.labels(inputs.class_counts, rows)),
    ]


def _training(inputs: Inputs) -> list[str]:
    train = inputs.params.train
    return [
        f"Loss: {escape(str(inputs.model.loss))}. {pluralize(len(inputs.history), 'epoch', 'epochs')}; "
        "the weights are those of "
        f"epoch {inputs.best_epoch}, selected by macro AP on the validation images. Global batch size "
        f"{train.batch_size}, learning rate {train.learning_rate:g}, weight decay {train.weight_decay:g}, "
        f"precision {train.precision}, seed {train.seed}. The report lists all parameters.",
    ]


def _metrics(inputs: Inputs, rows: Sequence[FindingRow]) -> list[str]:
    metrics, boxes = inputs.metrics, inputs.localisation
    located = "" if boxes is None else localisation.summary(read_table(boxes))
    missing = [f"{escape(name)}: {escape(reason)}." for name, reason in metrics.not_estimable.items()]
    return [
        f"On {metrics.test.rows:,} test images of {metrics.test.patients:,} patients, with "
        f"{metrics.percent} intervals from {metrics.replicates:,} bootstrap resamples of the "
        "patients. The chance level of AP is the "
        f"prevalence of the finding, that of AUROC is 0.5. {sealed(metrics.test.sealed_patients)}".rstrip(),
        _table(tables.tiers(metrics, rows)),
        _table(tables.cxr_lt(metrics)),
        _table(tables.findings(rows)),
        "Not estimable: " + (" ".join(missing) if missing else "no finding."),
        *([f"Heat maps and boxes: {escape(located)}"] if located else []),
    ]


def _calibration(inputs: Inputs, rows: Sequence[FindingRow]) -> list[str]:
    threshold = inputs.params.evaluate.threshold
    points = read_rows(inputs.operating, OperatingRow)
    return [
        "One calibration map per finding, fitted on the validation images. Before: the sigmoid of the raw logit.",
        _table(calibration.maps(rows)),
        f"Thresholds were chosen on the validation images for {calibration.rules(threshold)[threshold.rule]}.",
        _table(calibration.operating(points, rows, threshold.rule, "Thresholds on the test images")),
    ]


def _audit(inputs: Inputs) -> list[str]:
    audited = audit.audit(read_rows(inputs.audit, AuditRow))
    absent = ", ".join(escape(name) for name in audited.missing)
    return [
        audit.summary_sentence(audited, inputs.metrics.confidence),
        *([_table(audited.flagged)] if audited.flagged else []),
        *([f"Not in the data: {absent}."] if absent else []),
        *(_table(part) for part in audited.groups),
    ]


def _robustness(inputs: Inputs) -> dict[str, list[str]]:
    """The section on changed images; none if the step is off."""
    shown = robustness.section(inputs.robustness, inputs.phantom)
    if shown is None:
        return {}
    parts = [
        _table(shown.tables[name])
        for name in ("shifts", "flip", "probes", "within", "attacks")
        if name in shown.tables
    ]
    return {"Robustness": [*map(escape, [*shown.sentences, *shown.not_available]), *parts]}


def _table(content: Table) -> str:
    """A table with its caption as Markdown, every cell escaped."""
    if not content.rows:
        return f"{escape(content.caption)}: none."
    lines = [
        [escape(column) for column in content.columns],
        ["---:" if align == "r" else "---" for align in content.align],
        *([escape(cell if isinstance(cell, str) else cell.text) for cell in row] for row in content.rows),
    ]
    return f"{escape(content.caption)}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
