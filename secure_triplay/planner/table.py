"""A budget plan on the terminal; 80 columns wide at most."""

from __future__ import annotations

import math
from itertools import groupby

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secure_triplay.planner.attacker import Ceiling
from secure_triplay.planner.plan import BudgetPlan, Meaning
from secure_triplay.report import words


def plan_table(plan: BudgetPlan) -> Group:
    """The answer, what each epsilon means to an attacker, noise by rounds and site size, families, notes.

    Study names are shown as they are: markup in them does nothing.
    """
    parts: list[RenderableType] = [Text(answer(plan), style="bold"), Text()]
    parts += [Text(line) for line in meaning_in_words(plan)]
    parts += [Text(), _meanings(plan), _dim(accuracy_line(plan)), Text(), _settings(plan)]
    if plan.impossible_sizes:
        parts.append(_dim(impossible_line(plan)))
    parts += [Text(), _families(plan), Text()]
    parts += [_dim(f"- {note}") for note in plan.notes]
    return Group(*parts)


def answer(plan: BudgetPlan) -> str:
    """What was asked for, in one sentence."""
    at = plan.chosen
    where = (
        f"δ = {words.power(at.delta)}, per {plan.unit} and site, {at.rounds:,} "
        f"round{'s' * (at.rounds != 1)} of "
        f"{plan.steps_per_round:,} step{'s' * (plan.steps_per_round != 1)}, each on "
        f"{_share(at.sampling_rate)} of a site"
    )
    if plan.question == "noise for an epsilon":
        found = f"ε = {at.epsilon:g} needs a noise multiplier of {at.noise_multiplier:.5g}"
    else:
        found = f"a noise multiplier of {at.noise_multiplier:g} gives ε = {words.epsilon(at.epsilon)}"
    return f"{plan.study}: {found} ({where})."


def meaning_in_words(plan: BudgetPlan) -> tuple[str, ...]:
    """The chosen epsilon for somebody who has never trained a model."""
    meaning, unit = plan.meaning, plan.unit
    lines = []
    for rate, ceiling in meaning.membership:
        lines.append(
            f"An attacker who wrongly accuses {_one_in(rate)} {unit}s that did not take part finds at most "
            f"{percent_up(ceiling.tight)} of those that did (guessing: {_plain_percent(rate)})."
        )
    size, ceiling = next(entry for entry in meaning.gallery if entry[0] == 100)
    lines.append(
        f"Shown {size} {unit}s of which one took part, it names the right one at most "
        f"{percent_up(ceiling.tight)} of the "
        f"time (guessing: {_plain_percent(1 / size)})."
    )
    return tuple(lines)


def accuracy_line(plan: BudgetPlan) -> str:
    """Where the accuracy column comes from, or that there is none."""
    if plan.accuracy_missing:
        return f"Cost in accuracy: {plan.accuracy_missing}."
    names = sorted({one.data for meaning in plan.meanings for one in meaning.measured})
    return (
        f"Accuracy: measured on {' and '.join(names) or 'the data set named there'} ({plan.accuracy_source}), "
        "mean over seeds; not a forecast for other data."
    )


def impossible_line(plan: BudgetPlan) -> str:
    """Which sites are too small for the study's batch."""
    sizes = ", ".join(f"{size:,}" for size in plan.impossible_sizes)
    return (
        f"A site of {sizes} is too small: one step uses {plan.expected_batch_size:g} {plan.unit}s on average."
    )


def epsilon_heads(plan: BudgetPlan) -> list[str]:
    """Column heads of the noise table."""
    return [f"ε = {epsilon:g}" for epsilon in plan.epsilons]


def accuracy(meaning: Meaning, *, named: bool = True) -> str:
    """Measured accuracy at one epsilon, by data set; a dash where it was not measured."""
    found = (f"{m.data} " * named + words.percent(m.accuracy) for m in meaning.measured)
    return "; ".join(found) or "–"


def percent_up(share: float) -> str:
    """A ceiling in percent, rounded up to three digits: `4.08 %`."""
    if share >= 0.9995:
        return "100 %"
    digits = 1 - math.floor(math.log10(max(share, 1e-12)))
    scale = 10.0 ** (digits + 1)
    return f"{100 * math.ceil(share * scale - 1e-9) / scale:.3g} %"


def noise(value: float) -> str:
    """A noise multiplier with four digits, or a dash where none is enough."""
    return f"{value:.4g}" if math.isfinite(value) else "–"


def _meanings(plan: BudgetPlan) -> Table:
    table = _table("The most an attacker reaches, whatever it knows besides (exact / by ε and δ alone)")
    table.add_column("ε", justify="right")
    table.add_column("noise", justify="right")
    for rate, _ in plan.meanings[0].membership:
        table.add_column(f"found at\n{_plain_percent(rate)} false", justify="right")
    for size, _ in plan.meanings[0].gallery:
        table.add_column(f"1 of\n{size:,}", justify="right")
    if not plan.accuracy_missing:
        table.add_column("accuracy\n(measured)", justify="right")
    for meaning in plan.meanings:
        cells = [_both(ceiling) for _, ceiling in (*meaning.membership, *meaning.gallery)]
        row = [f"{meaning.epsilon:.4g}", noise(meaning.noise_multiplier), *cells]
        if not plan.accuracy_missing:
            one = len({found.data for each in plan.meanings for found in each.measured}) == 1
            row.append(accuracy(meaning, named=not one))
        table.add_row(*row, style="bold" if meaning.epsilon == plan.chosen.epsilon else "")
    return table


def _settings(plan: BudgetPlan) -> Table:
    table = _table(
        f"Noise multiplier by site size, rounds and ε ({plan.expected_batch_size:g} {plan.unit}s a step)"
    )
    table.add_column(f"{plan.unit}s\nat a site", justify="right")
    table.add_column("share\na step", justify="right")
    table.add_column("δ", justify="right")
    table.add_column("rounds", justify="right")
    for head in epsilon_heads(plan):
        table.add_column(head, justify="right")
    for size, of_size in groupby(plan.table, lambda cell: cell.site_size):
        for first, (rounds, row) in enumerate(groupby(of_size, lambda cell: cell.rounds)):
            cells = list(row)
            site = [f"{size:,}", _share(cells[0].sampling_rate), words.power(cells[0].delta)]
            shown = [
                Text(noise(cell.noise_multiplier), style="bold reverse" if cell == plan.chosen else "")
                for cell in cells
            ]
            table.add_row(*([""] * 3 if first else site), f"{rounds:,}", *shown)
        table.add_section()
    return table


def _families(plan: BudgetPlan) -> Table:
    table = _table(f"Families: several {plan.unit}s of one site together, at the same noise")
    table.add_column(f"{plan.unit}s", justify="right")
    table.add_column("ε, this training", justify="right")
    table.add_column("by the general rule", justify="right")
    for family in plan.families:
        exact = f"{words.epsilon(family.epsilon)}" if math.isfinite(family.epsilon) else "unbounded"
        rule = f"ε = {family.rule_epsilon:.4g}, δ = {words.power(family.rule_delta)}"
        table.add_row(f"{family.members}", exact, "nothing" if family.rule_delta >= 0.5 else rule)
    return table


def _table(title: str) -> Table:
    heading = Text(title, style="bold")
    return Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=heading, title_justify="left"
    )


def _both(ceiling: Ceiling) -> str:
    if ceiling.exact is None:
        return percent_up(ceiling.region)
    return f"{percent_up(ceiling.tight)}\n/ {percent_up(ceiling.region)}"


def _share(rate: float) -> str:
    return f"{100 * rate:.3g} %"


def _plain_percent(rate: float) -> str:
    return f"{100 * rate:g} %"


def _one_in(rate: float) -> str:
    return f"1 in {1 / rate:,.0f}"


def _dim(line: str) -> Text:
    return Text(line, style="dim")
