"""What an audit says beside its laws: nearly laws, laws that other weights break, what the data alone hold."""

from __future__ import annotations

from nlcompanion._arguments import counted
from nlcompanion.laws.auditing.confirm import Confirmed
from nlcompanion.laws.auditing.double_copy import DoubleCopy
from nlcompanion.laws.auditing.equations import collect
from nlcompanion.laws.auditing.families import Family
from nlcompanion.laws.auditing.naming import SYMMETRIES, kind_of
from nlcompanion.laws.auditing.own_weights import Broken, OnOwnWeights
from nlcompanion.laws.auditing.search import Search
from nlcompanion.laws.auditing.slices import Layout


def limits_of(confirmed: Confirmed, own: OnOwnWeights, layout: Layout) -> list[str]:
    """What was found and is no law, with the reason."""
    return [
        *(_refused(family, layout) for family in confirmed.refused),
        *(_bounded(family, layout) for family in confirmed.bounded),
        *(_broken(one, layout) for one in own.broken),
        *(_unclear(family, layout) for family in own.unclear),
    ]


def _named(family: Family, layout: Layout) -> str:
    return f"{SYMMETRIES[kind_of(family, layout)]}, {', '.join(family.names(layout))}"


def _refused(family: Family, layout: Layout) -> str:
    return (
        f"nearly a law, not confirmed at a finite distance (the loss moves by {family.moved:.0e}): "
        f"{', '.join(family.names(layout))}"
    )


def _bounded(family: Family, layout: Layout) -> str:
    return (
        f"holds while weights are small and not beyond: {_named(family, layout)}; an activation has a threshold there, "
        "or a gate opens"
    )


def _broken(one: Broken, layout: Layout) -> str:
    family = one.family
    of_what = "mixings of" if one.mixing else "of"
    return (
        f"holds at random weights and not at the model's own, where the loss has a slope along it (defect "
        f"{one.defect:.0e}): {SYMMETRIES[kind_of(family, layout)]}, {one.generators} {of_what} "
        f"{', '.join(family.names(layout))}; a gate may be open there that random weights leave closed"
    )


def _unclear(family: Family, layout: Layout) -> str:
    return (
        "could not be held against the model's own weights with eps at 0, where something is divided by 0: "
        f"{_named(family, layout)}; its defect is that of eps and of anything else"
    )


def of_the_data(room: DoubleCopy, layout: Layout, search: Search) -> list[str]:
    """What holds on the given data only: slices that these data never reach."""
    limits = [f"{name}: {counted(count, 'row')} never looked up" for name, count in search.unseen.items()]
    if not room.samplable:
        return limits
    room.samplable = False
    try:
        here = collect(room, layout, range(5_001, 5_006))
    finally:
        room.samplable = True
    dead = (here.sizes["shift"].max(0) == 0) & ~search.dead
    for k, axis in enumerate(layout.axes):
        count = int(dead[axis.start : axis.start + len(axis)].sum())
        if count and len(axis.view) > 1 and not search.is_lookup(k):
            limits.append(
                f"on the given data only: {count} of {len(axis)} slices of {axis.name} (axis {axis.keep[0]}) get no "
                "gradient, because inputs vanish there"
            )
    return limits
