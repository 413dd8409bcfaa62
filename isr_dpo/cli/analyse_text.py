"""The analyses as tables in a terminal. Texts of models and files are shown as they are: they are no markup."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from isr_dpo import layout
from isr_dpo.analyse.asking import Bill
from isr_dpo.analyse.claims import Claims, Examined, pieces
from isr_dpo.analyse.designs import Designs
from isr_dpo.analyse.differences import Words
from isr_dpo.analyse.estimate import Estimate
from isr_dpo.analyse.lengths import Lengths
from isr_dpo.analyse.runs import GraderInfo
from isr_dpo.analyse.tables import Cell
from isr_dpo.analyse.tables import Table as PaperTable
from isr_dpo.analyse.trajectories import Trajectories
from isr_dpo.analyse.win_rate import WinRate

NONE = "–"
STYLES = {"": "", "added": "green", "removed": "red", "supported": "blue", "unsupported": "red"}
EXAMPLES = 5
"""Answers with unsupported claims that are shown."""


def estimate(found: Estimate | None, *, digits: int, scale: float = 1.0, sign: bool = False) -> str:
    """`83.0 [81.2, 84.9]`; a dash where there is nothing to show."""
    if found is None:
        return NONE
    plus = "+" if sign else ""
    value = f"{scale * found.value:{plus}.{digits}f}"
    if found.low is None or found.high is None:
        return value
    return f"{value} [{scale * found.low:{plus}.{digits}f}, {scale * found.high:{plus}.{digits}f}]"


def lengths(found: Sequence[Lengths]) -> list[RenderableType]:
    columns = ("run", "context", "round", "pairs", "|y_w|", "|y_l|", "|y_w|/|y_l|")
    rounds = new_table("Words of preferences (Figure 4), mean", *columns)
    sets = new_table("Words of answers (Figure 5), mean", "run", "context", "set", "policy", "words", "unanswered")
    for one in found:
        for of in one.rounds:
            which = str(of.round) if of.round else "seed"
            figures = (estimate(of.chosen, digits=1), estimate(of.rejected, digits=1), estimate(of.ratio, digits=2))
            add_row(rounds, one.run, one.context, which, str(of.chosen.rows), *figures)
        for answered in one.sets:
            words = estimate(answered.words, digits=1)
            add_row(sets, one.run, one.context, answered.set, _policy(answered.policy), words, str(answered.unanswered))
    return [rounds, sets]


def designs(found: Designs) -> list[RenderableType]:
    title = f"Context designs (Table 5), {layout.policy_name(found.policy)}"
    columns = ("set", "context", "run", "accuracy, %", "over none", "score", "over none", "unscored", "grader")
    table = new_table(title, *columns)
    names = dict.fromkeys(of.set for design in found.designs for of in design.sets)
    for name in names:
        for design in found.designs:
            for of in design.sets:
                if of.set == name:
                    add_row(
                        table,
                        name,
                        design.context,
                        design.run,
                        estimate(of.accuracy, digits=1, scale=100),
                        estimate(of.accuracy_gain, digits=1, scale=100, sign=True),
                        estimate(of.score, digits=2),
                        estimate(of.score_gain, digits=2, sign=True),
                        f"{of.unscored} of {of.rows}",
                        of.grader,
                    )
    return [table, *map(_note, found.notes)]


def table(found: PaperTable) -> list[RenderableType]:
    title = f"Table {found.number}. {found.title} (accuracy in % / score)"
    table = new_table(title, "system", *found.sets.values(), "unscored", "grader")
    for number, row in enumerate(found.rows):
        if number and row.origin != found.rows[number - 1].origin:
            table.add_section()
        cells = [row.cells.get(name) for name in found.sets]
        figures = [_cell(cell, digits=found.digits) for cell in cells]
        add_row(table, f"{row.system} {row.mark}".strip(), *figures, _unscored(cells), row.grader)
    return [table, *map(_note, found.notes)]


def _cell(cell: Cell | None, *, digits: int) -> str:
    if cell is None:
        return NONE
    return f"{estimate(cell.accuracy_percent, digits=digits)} / {estimate(cell.score, digits=digits)}"


def _unscored(cells: Sequence[Cell | None]) -> str:
    """Of all answers to the table's sets."""
    known = [(cell.unscored, cell.rows) for cell in cells if cell is not None]
    counts = [(unscored, rows) for unscored, rows in known if unscored is not None and rows is not None]
    if not counts:
        return "not reported"
    return f"{sum(unscored for unscored, _ in counts)} of {sum(rows for _, rows in counts)}"


def trajectories(found: Trajectories) -> list[RenderableType]:
    parts: list[RenderableType] = []
    head = f"{found.run} ({found.context or 'benchmark'})"
    for video in found.videos:
        table = new_table(f"{head}, training video {video.video}", "round", "what", "text; new words are green")
        for description in video.descriptions:
            table.add_row(str(description.round), "description", _words(description.changes))
        for question in video.questions:
            table.add_section()
            table.add_row("", "question", safe(question.question))
            for response in question.responses:
                shown = _words(response.changes) if response.chosen is not None else safe(f"({response.outcome})")
                table.add_row(str(response.round), "chosen", shown)
        parts.append(table)
    for asked in found.questions:
        title = f"{head}, set {found.set}, {asked.video}: {asked.question}"
        correct = f"correct ({found.grader or 'not graded'})"
        table = new_table(title, "policy", correct, "words", "text; new words are green")
        table.add_row("", "", "", safe(f"ground truth: {asked.truth}"))
        for answer in asked.answers:
            right = {True: "yes", False: "no", None: NONE}[answer.correct]
            table.add_row(_policy(answer.policy), right, str(answer.words), _words(answer.changes))
        parts.append(table)
    return parts


def win_rate(found: WinRate) -> list[RenderableType]:
    title = f"{found.first.label} against {found.second.label} (Figure 6), {_graded(found.grader)}"
    shares = ("wins, %", "losses, %", "ties, %", "lead, points")
    table = new_table(title, "set", *shares, "orders disagree", "unscored", "words", "other's words")
    for of in found.sets:
        scored = of.wins + of.losses + of.ties
        figures = [estimate(share, digits=1, scale=100) for share in (of.win_share, of.loss_share, of.tie_share)]
        words = (estimate(of.words, digits=1), estimate(of.other_words, digits=1))
        lead = estimate(of.lead, digits=1, scale=100, sign=True)
        add_row(table, of.set, *figures, lead, f"{of.inconsistent} of {scored}", str(of.unscored), *words)
    return [table, _note(_bill(found.bill))]


def claims(found: Claims) -> list[RenderableType]:
    title = f"Unsupported claims (Figure 2): {found.run}, set {found.set}, {_graded(found.grader)}"
    figures = ("words", "claims", "unsupported", "change", "answers with any, %", "of claims, %")
    table = new_table(title, "policy", "answers", "unscored", *figures)
    for of in found.policies:
        add_row(
            table,
            _policy(of.policy),
            str(of.answers),
            str(of.unscored),
            estimate(of.words, digits=1),
            estimate(of.claims, digits=2),
            estimate(of.unsupported, digits=2),
            estimate(of.unsupported_change, digits=2, sign=True),
            estimate(of.any_unsupported, digits=1, scale=100),
            estimate(of.unsupported_share, digits=1, scale=100),
        )
    worst = sorted(found.rows, key=lambda row: -row.unsupported)[:EXAMPLES]
    shown = [_examined(row) for row in worst if row.unsupported]
    return [table, _note(_bill(found.bill)), *shown]


def _examined(row: Examined) -> Text:
    text = safe(f"{_policy(row.policy)}, {row.id}: {row.question}\n  caption: {row.caption}\n  answer: ")
    for piece in pieces(row.answer, row.claims or ()):
        shown = f"[{piece.text}]" if piece.verdict == "unsupported" else piece.text
        text.append_text(safe(shown, STYLES[piece.verdict]))
    return text


def new_table(title: str, *columns: str) -> Table:
    table = Table(title=safe(title), title_justify="left")
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    return table


def add_row(table: Table, *cells: str) -> None:
    table.add_row(*map(safe, cells))


def safe(text: str, style: str = "") -> Text:
    """`text` without what a terminal would obey."""
    return Text("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text), style=style)


def _words(words: Sequence[Words]) -> Text:
    text = Text()
    for number, run in enumerate(words):
        text.append(" " if number else "").append_text(safe(run.text, STYLES[run.mark]))
    return text


def _policy(index: int) -> str:
    return layout.policy_name(index)


def _graded(grader: GraderInfo) -> str:
    return f"graded by {grader.label}"


def _bill(bill: Bill) -> str:
    if not bill.bought:
        return f"{bill.asked} replies, none of them bought now."
    return f"{bill.asked} replies, {bill.bought} of them bought now for ${bill.cost_usd:.4f}."


def _note(text: str) -> Text:
    return safe(text, "dim")
