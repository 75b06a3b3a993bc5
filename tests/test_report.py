"""The report: its numbers are those of the runs, it says how each stands, and the page needs nothing else."""

import html.parser
import json
import math
import re

import pytest

from experiments import listing, models, report, tasks
from experiments.report import collect, figures, measures, settings, tables

ADDING, COPY = tasks.get("adding"), tasks.get("copy")
VERSIONS = {"gru_jax": "0.1.0", "jax": "0.10.2", "platform": "cpu"}


def make(folder, lines, *, ended=None, solved_at=None, seconds=(1.5, 2.0), **settings):
    """Writes a run folder: `lines` of metrics, by step; `ended` with the status, if it has."""
    folder.mkdir(parents=True)
    config = {"task": "adding", "length": 200, "steps": 20000, "hidden": 64, "cell": "gru", "init": "chrono", "seed": 0}
    config |= {"chunk": 100, "evaluation": 1024, "beyond": []} | settings
    config["seeds"] = len(next(iter(lines.values()))["eval_loss"]) if lines else 3
    written = {"config": config, "command": f"python -m experiments train {config['task']} --out '{folder.name}'"}
    (folder / "config.json").write_text(json.dumps(written | {"made_with": VERSIONS}))
    metrics = [{"step": step, "train_loss": line["eval_loss"], **line} for step, line in lines.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (folder / "timing.jsonl").write_text("".join(json.dumps({"step": 1, "seconds": s}) + "\n" for s in seconds))
    if ended is not None:
        last = metrics[-1] if metrics else {"step": 0}
        summary = {"status": ended, "baseline": 1 / 6, "units": 64, "parameters": 13057}
        summary |= {"solved_at": solved_at or [None] * config["seeds"], **last}
        if ended == "diverged":
            summary |= {
                "reason": "eval_loss of seed 1 became nan between steps 200 and 300",
                "last_good_checkpoint": "200",
            }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs of every kind, and the report on them."""
    root = tmp_path_factory.mktemp("many") / "runs"
    beyond = {"eval_loss@400": [0.004, 0.002, 0.003, 0.006, 0.005]}
    make(
        root / "solved",
        {100: {"eval_loss": [0.16] * 5}, 900: {"eval_loss": [9e-4, 9.9999e-4, 5e-4, 8e-4, 7e-4], **beyond}},
        ended="solved",
        solved_at=[500, 700, 900, 600, 600],
    )
    make(
        root / "deeper" / "longer",
        {100: {"eval_loss": [0.17] * 4}, 20000: {"eval_loss": [2e-4, 0.15, 9e-4, 0.05]}},
        ended="budget spent",
        solved_at=[5000, None, 9000, None],
        length=600,
    )
    make(root / "wide", {100: {"eval_loss": [0.1] * 2}}, ended="solved", solved_at=[50, 100], hidden=128)
    make(root / "lstm", {200: {"eval_loss": [0.1, 0.2]}}, ended="diverged", cell="lstm", seconds=())
    make(root / "<b>odd & $x_1$|\udcff", {300: {"eval_loss": [0.2]}}, init="default")
    recalled = {"eval_recall_accuracy": [0.99001, 0.9942, 0.98], "eval_loss": [0.01, 0.02, 0.03]}
    make(root / "copy", {400: recalled}, ended="budget spent", solved_at=[300, 400, None], task="copy", length=50)
    (root / "torn").mkdir()
    (root / "torn" / "config.json").write_text('{"config": {"task"')
    (root / "stray").mkdir()
    (root / "stray" / "metrics.jsonl").write_text("")
    make(root / "unknown", {}, task="coppy")
    make(root / "seeds", {100: {"eval_loss": [1.0, 2.0]}, 200: {"eval_loss": [1.0]}})
    page = report.write(root)
    return root, page, page.read_text(encoding="utf-8")


class Tree(html.parser.HTMLParser):
    """Checks that elements nest, and collects texts, attributes, and the cells of each table's rows."""

    EMPTY = frozenset({"meta", "link", "br", "use", "path"})

    def __init__(self, page):
        super().__init__()
        self.open, self.attributes, self.tables, self.text = [], [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag in ("div", "br"):
            self.handle_data(" ")

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    def rows(self, number):
        """A table's rows, white space as one space."""
        return [[" ".join(cell.split()) for cell in row] for row in self.tables[number]]


def test_overview(made):
    """Medians and ranges computed by hand, the count of solved seeds, the published value."""
    head, *rows = Tree(made[2]).rows(0)
    assert head == ["Task", "Published", "gru, chrono", "gru, default", "lstm, chrono"]
    assert rows == [
        [
            "adding T = 200 mean squared error",
            "5.3e-5 at T = 600",
            "hidden 64 0.0008 0.0005 to 0.00099999 ✓ 5/5 solved hidden 128 0.1 0.1 to 0.1 ✓ 2/2 solved",
            "0.2 unfinished, step 300",
            "diverged after step 200 0/2 solved, diverged",
        ],
        [
            "adding T = 600 mean squared error",
            "5.3e-5 at T = 600",
            "hidden 64 0.02545 0.0002 to 0.15 2/4 solved",
            "–",
            "–",
        ],
        [
            "copy T = 50 recall accuracy",
            "cross-entropy per step (nats) 0.0197 at T = 1000",
            "0.99001 0.98 to 0.9942 2/3 solved",
            "–",
            "–",
        ],
    ]


def test_tables_of_tasks(made):
    tree = Tree(made[2])
    head, solved, command, wide, *_ = tree.rows(1)
    assert head[:5] == ["Run", "Mean squared error", "Published", "Solved", "Steps to solve"]
    assert head[5:] == ["Longer lengths", "Units", "Parameters", "Wall time"]
    assert solved[3:] == ["✓ 5/5 solved", "600 500 to 900", "T = 400 0.004 0.002 to 0.006", "64", "13,057", "3.5 s"]
    assert command == ["python -m experiments train adding --out 'solved' in solved"]
    assert wide[:2] == ["T = 200 gru, chrono, hidden 128", "0.1 0.1 to 0.1"]
    longer = next(row for row in tree.rows(1) if row[0].startswith("T = 600"))
    assert longer[3:5] == ["2/4 solved", "> 20,000 5,000 to > 20,000"]
    copied = tree.rows(2)[1]
    assert copied[1:3] == ["0.99001 0.98 to 0.9942", "0.02 0.01 to 0.03"]
    assert copied[5] == "400 300 to > 400"
    assert all(len(row) in (1, len(table[0])) for table in tree.tables for row in table)


def test_says_what_is_not_finished(made):
    text = " ".join(Tree(made[2]).text.split())
    assert "6 runs: 2 solved, 2 budget spent, 1 diverged, 1 unfinished; 4 folders cannot be read." in text
    reason = "eval_loss of seed 1 became nan between steps 200 and 300; last good checkpoint 200."
    assert f"lstm (adding, T = 200, lstm, chrono): diverged after step 200: {reason}" in text
    assert r"<b>odd & $x_1$|\udcff (adding, T = 200, gru, default): unfinished, at step 300 of 20,000." in text
    assert "torn cannot be read: config.json is no JSON" in text
    assert "stray cannot be read: config.json: No such file or directory." in text
    assert "unknown cannot be read: unknown task 'coppy'; did you mean 'copy'?" in text
    assert "seeds cannot be read: metrics.jsonl: train_loss must be a list of 2 numbers" in text
    assert "gru_jax 0.1.0, jax 0.10.2, platform cpu: 6 runs." in text


def test_needs_nothing_else(made):
    """No attribute or style makes a browser fetch anything, and nothing from a name became an element."""
    _, _, page = made
    tree = Tree(page)
    for tag, name, value in tree.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            assert value.startswith("#"), (tag, name, value)
    assert re.findall(r"@import|url\((?!#)", page) == []
    assert "b" not in {tag for tag, _, _ in tree.attributes}
    assert "<b>" not in page
    assert "<script" not in page
    ids = [value for _, name, value in tree.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    referred = {value for _, name, value in tree.attributes if name in ("href", "xlink:href")}
    assert {value.removeprefix("#") for value in referred} <= set(ids)


def test_figures(made):
    """Baseline and published value are lines with labels, and the texts say what is seen."""
    root, page, text = made
    names = ["adding-T200", "adding-T600", "adding-steps", "copy-T50"]
    assert sorted(path.stem for path in page.parent.glob("*.png")) == names
    assert all((page.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in names)
    shown = " ".join(re.sub("<[^>]*>", " ", text).replace("\u00a0", " ").split())
    assert "trivial baseline, 0.1667" in shown
    assert "published mean squared error 5.3e-5 at T = 600 (GRU, Bai" in shown
    assert "published mean squared error 5.3e-5 at T = 600, drawn at its share of the baseline, 0.00032" in shown
    assert "trivial baseline, 0.2971" in shown
    alts = [value for _, name, value in Tree(text).attributes if name == "aria-label" and "at the end" in value]
    assert "gru, chrono, hidden 64 0.0008, gru, chrono, hidden 128 0.1, gru, default 0.2" in alts[0]
    found, _ = collect.collect(root)
    assert "gru, chrono, hidden 64 at T = 600 > 20,000 (2/4 solved)" in text.replace("&gt;", ">")
    assert figures.solving_steps([run for run in found if run.length == 200], figures.styles(found)) is None


def test_levels():
    """A published loss at another length is drawn at the same share of the baseline; at its own, where it is."""
    (baseline, _, _), (level, _, _) = figures._levels(measures.Measure(COPY, "loss"), 50)
    assert baseline == COPY.baseline(50)
    assert level == pytest.approx(0.0197 / COPY.baseline(1000) * COPY.baseline(50))
    assert figures._levels(measures.Measure(COPY, "loss"), 1000)[1][0] == 0.0197


def test_markdown(made):
    head, dashes, *rows = (made[1].parent / "table.md").read_text().splitlines()
    assert len({len(line) for line in (head, dashes, *rows)}) == 1
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in (head, *rows)]
    assert {len(row) for row in cells} == {14}
    solved = dict(zip(cells[0], cells[1], strict=True))
    assert (solved["median"], solved["range"]) == ("0.0008", "0.0005 to 0.00099999")
    assert solved["steps to solve"] == "600 (500 to 900)"
    assert solved["command"] == "`python -m experiments train adding --out 'solved'`"
    (odd,) = (row for row in cells if row[2] == "gru, default")
    assert odd[-1].endswith(r"'<b>odd & $x_1$\|\udcff'`")


def test_same_runs_same_files_and_all_or_nothing(made, tmp_path, monkeypatch):
    root, page, text = made
    again = report.write(root, tmp_path / "elsewhere")
    assert again.read_text(encoding="utf-8") == text
    for path in page.parent.iterdir():
        assert (again.parent / path.name).read_bytes() == path.read_bytes(), path.name
    monkeypatch.setattr(tables, "markdown", lambda found: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write(root / "lstm", tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_one_run_one_seed_without_a_line(tmp_path):
    """A run folder itself; stopped before its first line, then with one that is torn, then with NaN for one seed."""
    folder = make(tmp_path / "one", {}, seconds=())
    assert "unfinished, at step 0 of 20,000" in report.write(folder).read_text()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 100, "eval_loss": [0.1, null, NaN]}\n{"step": 200, "eval_lo')
    (row,) = Tree(report.write(folder).read_text()).rows(0)[1:]
    assert row[2] == "diverged 0.1 to diverged unfinished, step 100"


def test_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no runs: there is no config\.json in it"):
        report.write(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        report.write(tmp_path / "missing")
    with pytest.raises(ValueError, match="RUNS: there is no folder"):
        settings.Report(tmp_path / "missing").check()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--out: .*file is a file"):
        settings.Report(tmp_path, tmp_path / "file").check()
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("config.json", {"command": 3}, "config.json: command cannot be 3"),
        ("config.json", {"config": {"task": "adding"}}, "config.json: config lacks length"),
        ("summary.json", {"status": "done"}, "summary.json: unknown status 'done'"),
        ("summary.json", {"solved_at": [1]}, "summary.json: solved_at must be a list of 2 numbers"),
        ("metrics.jsonl", {"step": "1"}, "metrics.jsonl: step cannot be '1'"),
        ("metrics.jsonl", {"eval_loss@far": [1, 2]}, "metrics.jsonl: 'eval_loss@far' names no length after @"),
        ("timing.jsonl", {"seconds": None}, "timing.jsonl: seconds cannot be None"),
    ],
)
def test_broken(tmp_path, name, change, reason):
    folder = make(tmp_path / "run", {1: {"eval_loss": [0.1, 0.2]}}, ended="solved", seconds=(1.0,))
    written = json.loads((folder / name).read_text()) | change
    (folder / name).write_text(json.dumps(written) + "\n")
    found, broken = collect.collect(tmp_path)
    assert (found, broken) == ([], [collect.Broken("run", broken[0].reason)])
    assert broken[0].reason.startswith(reason)
    assert f"run cannot be read: {reason}" in Tree(report.write(tmp_path).read_text()).text


def test_digits():
    """Rounding never crosses a criterion or reaches 1."""
    accuracy, loss = measures.main(COPY), measures.main(ADDING)
    for digits in range(3, 12):
        for value in (0.99 - 10.0**-digits, 0.99 + 10.0**-digits, 1 - 10.0**-digits):
            shown = float(accuracy.text(value))
            assert COPY.solved({"recall_accuracy": shown}) == COPY.solved({"recall_accuracy": value})
            assert shown != 1
            assert shown == pytest.approx(value, rel=5e-4)
        assert ADDING.solved({"loss": float(loss.text(1e-3 - 10.0**-digits))})
    assert loss.spread([math.nan, 1, 2]) == (2, 1, math.inf)
    assert accuracy.spread([math.nan, 0.1, 0.2]) == (0.1, -math.inf, 0.2)


def test_listing():
    shown = listing.text()
    assert max(map(len, shown.splitlines())) <= 100
    *blocks, cells, inits = shown.split("\n\n")
    assert " ".join(cells.split()) == f"cells: {', '.join(models.CELLS)}"
    assert " ".join(inits.split()) == f"inits: {', '.join(models.INITS)}"
    for task, block in zip(tasks.TASKS.values(), blocks, strict=True):
        text = " ".join(block.split())
        for part in (
            f"{task.name}: {task.summary}",
            task.paper,
            task.criterion.text,
            *(r.source for r in task.references),
        ):
            assert " ".join(part.split()) in text
        assert f"at T = {task.recipe.length}" in text
    with pytest.raises(ValueError, match="did you mean 'adding'"):
        listing.Listing("addin").check()
